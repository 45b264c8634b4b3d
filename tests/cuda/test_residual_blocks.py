"""residual_blocks' CUDA kernels, emulated: chains of those of residual_block."""

import pytest
import torch
from support.calls import block_parameters
from support.cuda_convolutions import DTYPES
from support.emulated import SEEDS, check
from support.grids import cover
from support.util import LAYOUTS, channels_last, rand

from clsd_fast.ops.residual_blocks import SECTION

SCALE = 0.5


def operands(count, channels, size, dtype, layout=channels_last, batch=2):
    """x, and weights1, biases1, weights2, biases2."""
    x, *parameters = (
        layout(t.to(dtype))
        for t in (rand(batch, channels, *size), *block_parameters(count, channels, channels))
    )
    return x, *(list(parameters[i::4]) for i in range(4))


def gradients(images, at):
    """Of the maps after those blocks."""
    return [channels_last(rand(*images.shape, seed=i).to(images.dtype)) for i in at]


def backward_arguments(emulation, x, weights1, biases1, weights2, biases2, at, needs):
    """Of residual_blocks_backward, from the forward's results."""
    kept = list(range(1, len(weights1) + 1))
    blocks = (x, weights1, biases1, weights2, biases2)
    maps, hiddens = emulation.ops.residual_blocks(*blocks, SCALE, kept, True)
    saved = (x, maps[:-1], hiddens, weights1, weights2)
    return gradients(x, at), at, *saved, SCALE, *needs


@cover(
    count=[1, 2, 3],
    kept=[[], [1], [1, 2]],
    channels=[16, 64],
    size=[(1, 1), (9, 17), (24, 49)],
    layout=LAYOUTS,
    save_hidden=[False, True],
)
def test_a_chain_is_its_blocks(emulation, count, kept, channels, size, layout, save_hidden):
    """Bit-equal, one kernel a block too, by two buffers where maps are not kept."""
    x, *parameters = operands(count, channels, size, torch.bfloat16, layout, batch=1)
    kept = sorted({*kept, count} - set(range(count + 1, 4)))
    maps, hiddens = emulation.ops.residual_blocks(x, *parameters, SCALE, kept, save_hidden)
    expected, expected_hiddens = [], []
    image = x
    for block in zip(*parameters, strict=True):
        image, hidden = emulation.ops.residual_block(image, *block, SCALE, save_hidden)
        expected.append(image)
        expected_hiddens.append(hidden)
    assert len(maps) == len(kept) and len(hiddens) == count * save_hidden
    assert all(map(torch.equal, maps, (expected[number - 1] for number in kept)))
    assert all(map(torch.equal, hiddens, expected_hiddens))
    assert {images.stride() for images in maps} == {expected[0].stride()}


@cover(
    sm90a=[False, True],
    at=[[3], [1, 3], [2, 3], [1, 2, 3]],
    channels=[16, 64],
    dtype=DTYPES,
    layout=LAYOUTS,
    size=[(1, 1), (9, 17)],
)
def test_gradients(emulation, sm90a, at, channels, dtype, layout, size):
    emulation.sm90a(sm90a)
    blocks = operands(3, channels, size, dtype, layout)
    arguments = backward_arguments(emulation, *blocks, at, (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("sm90a", [False, True])
def test_gradients_of_a_large_image(emulation, sm90a):
    """Of many tiles, the gradient at a tap added in each."""
    emulation.sm90a(sm90a)
    blocks = operands(2, 64, (50, 49), torch.bfloat16, batch=1)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, False))
    check(emulation, "residual_blocks_backward", *arguments)


@cover(quick=2, seed=SEEDS, sm90a=[False, True])
def test_any_order_of_warps(emulation, seed, sm90a):
    emulation.sm90a(sm90a)
    blocks = operands(2, 64, (9, 5), torch.bfloat16, batch=1)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    emulation.seed(seed)
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_only_some_gradients_are_asked_for(emulation, needs):
    blocks = operands(2, 16, (6, 5), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [1, 2], needs)
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_strides(emulation, layout):
    blocks = operands(2, 16, (6, 5), torch.float16)
    grads, *arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    expanded = torch.ones((), dtype=torch.float16).expand_as(blocks[0])
    for given in ([layout(grad) for grad in grads], [expanded, expanded]):
        check(emulation, "residual_blocks_backward", given, *arguments)


def test_more_blocks_than_a_launch_takes(emulation):
    blocks = operands(SECTION + 1, 16, (5, 4), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [2, SECTION + 1], (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


def test_empty_batch(emulation):
    blocks = operands(2, 16, (6, 5), torch.float16, batch=0)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


def test_launches(emulation):
    """Of a section: its parameters are packed by one, and all their gradients computed by two."""
    blocks = operands(SECTION, 64, (8, 8), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [4, SECTION], (True, True))
    kept = list(range(1, SECTION + 1))
    with emulation.recorded(runs=False) as launches:
        emulation.ops.residual_blocks(*blocks, SCALE, kept, True)
    kernels = [launch.kernel.split("<")[0] for launch, _ in launches]
    assert kernels == ["pack_kernel", *["sm80::conv3x3_kernel"] * 2 * SECTION]
    with emulation.recorded(runs=False) as launches:
        emulation.ops.residual_blocks_backward(*arguments)
    kernels = [launch.kernel.split("<")[0] for launch, _ in launches]
    wgrad = ["wgrad_sm80::wgrad_kernel", "wgrad::wgrad_reduce_kernel"]
    assert kernels == ["pack_kernel", *["sm80::conv3x3_kernel"] * 2 * SECTION, *wgrad]
