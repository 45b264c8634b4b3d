"""The emulation sees what it is for: each planted fault is caught, and nothing else is."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.emulated import SEEDS, caught
from support.util import channels_last, rand

REPORTED = {
    "out of bounds": "load of 4 bytes at byte 1200 of a tensor of 1200",
    "shared out of bounds": "load_shared at byte 288 of 288 of shared memory",
    "misaligned": "cp.async at an address not aligned to 16",
    "diverged": "no thread can go on: from thread 0 ",
    "barrier not reached": "no thread can go on: from thread 0 ",
}


def filtered(x):
    weight = torch.tensor([[[1.0, 2.0, 4.0]]])
    return F.conv1d(x[None, None], weight, padding=1)[0, 0]


def planted(emulation, fault):
    """Where the kernel with that fault is caught, on 300 numbers: two blocks."""
    x = torch.arange(1.0, 301.0)
    return caught(emulation, partial(emulation.ops.planted, x, fault), filtered(x))


def test_no_fault(emulation):
    assert not any(planted(emulation, "none"))


@pytest.mark.parametrize("fault", ["missing barrier", "missing wait", "early overwrite"])
def test_races(emulation, fault):
    assert sum(planted(emulation, fault)) > len(SEEDS) / 2


def test_order_of_blocks(emulation):
    """A block that reads what another one writes."""
    assert any(planted(emulation, "order of blocks"))


def test_wrong_tap(emulation):
    assert all(planted(emulation, "wrong tap"))


@pytest.mark.parametrize("fault", REPORTED)
def test_violations(emulation, fault):
    message = r"planted_kernel<.*>, block \(\d, 0, 0\).*" + re.escape(REPORTED[fault])
    for seed in SEEDS:
        emulation.seed(seed)
        with pytest.raises(RuntimeError, match=message):
            emulation.ops.planted(torch.arange(300.0), fault)


def product_operands(transposed):
    a, b = (rand(64, 48, seed=seed).bfloat16() for seed in (0, 1))
    expected = a.float() @ b.float().T
    return (a.T.contiguous(), b.T.contiguous(), expected) if transposed else (a, b, expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_warpgroup_product(emulation, transposed):
    a, b, expected = product_operands(transposed)
    for seed in SEEDS:
        emulation.seed(seed)
        product = emulation.ops.wgmma_product(a, b, transposed, True, True, True)
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "protocol, message",
    [
        ((False, True, True), r"wgmma reads byte \d+ .* without fence_proxy_async"),
        ((True, False, True), "wgmma without wgmma_fence before it"),
    ],
)
def test_warpgroup_protocol(emulation, protocol, message):
    a, b, _ = product_operands(False)
    with pytest.raises(RuntimeError, match=message):
        emulation.ops.wgmma_product(a, b, False, *protocol)


def test_warpgroup_product_without_a_wait(emulation):
    """The operands are overwritten while the product may still read them."""
    a, b, expected = product_operands(False)
    call = partial(emulation.ops.wgmma_product, a, b, False, True, True, False)
    assert sum(caught(emulation, call, expected)) > len(SEEDS) / 2


#: Of 16 input channels each.
SLICES = 8


@pytest.fixture
def convolution(emulation):
    """A call of that many slices, and its result."""
    x, weight = (channels_last(t.bfloat16()) for t in (rand(1, 128, 3, 9), rand(16, 128, 3, 3)))
    call = partial(emulation.ops.conv3x3, x, weight, None, None, 1.0, False)
    return call, call()


@pytest.mark.thorough
@pytest.mark.parametrize("index", range(SLICES + 1))
def test_every_barrier_of_the_convolution_is_needed(emulation, convolution, index):
    emulation.skip_barrier(index)
    assert any(caught(emulation, *convolution))


@pytest.mark.thorough
@pytest.mark.parametrize("index", range(SLICES))
def test_every_wait_of_the_convolution_is_needed(emulation, convolution, index):
    emulation.skip_wait(index)
    assert any(caught(emulation, *convolution))
