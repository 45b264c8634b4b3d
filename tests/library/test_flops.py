"""What is counted of operators equals what is counted of the layers that they stand for."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.calls import CALLS, IMAGES, LARGE
from torch.utils.flop_counter import FlopCounterMode

import clsd_fast
from clsd_fast import CLSD, EDSR
from clsd_fast._flops import FORMULAS
from clsd_fast._library import SCHEMAS

ALL = CALLS | LARGE


def counted(function, tensors, needs=None):
    """Operations of the forward, and with those of the backward, for the gradients needed."""
    leaves = [t.float() for t in tensors]
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(needs is None or index in needs)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        function(*leaves)
    with FlopCounterMode(display=False) as both:
        function(*leaves).square().sum().backward()
    return forward.get_total_flops(), both.get_total_flops()


def layers(x, *parameters):
    """The tail of a call layer by layer."""
    factors = {5: (3,), 7: (2, 2)}[1 + len(parameters)]
    for factor, weight, bias in zip(factors, parameters[::2], parameters[1::2], strict=False):
        x = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), factor)
    return F.conv2d(x, *parameters[-2:], padding=1)


def test_every_operator_has_a_formula():
    assert FORMULAS.keys() == SCHEMAS.keys()


def check(name, needs=None):
    function, make = ALL[name]
    tensors = make()
    ours = counted(function, tensors, needs)
    plain = layers if name.startswith("upsample_tail") else function
    with clsd_fast.use_backend("reference"):
        expected = counted(plain, tensors, needs)
    assert ours == expected
    elementwise = "l1" in name or name.startswith("distance_ratio_loss")
    assert (expected[0] == 0) is elementwise


@pytest.mark.parametrize("name", ALL)
def test_operators_count_as_plain_pytorch(native, name):
    check(name)


@pytest.mark.parametrize("needs", [{0}, range(1, 20)], ids=["images", "parameters"])
@pytest.mark.parametrize("name", IMAGES)
def test_gradients_of_a_part_count_as_plain_pytorch(native, name, needs):
    check(name, needs)


@pytest.mark.parametrize("scale", [2, 4])
def test_models_count_as_plain_pytorch(native, scale):
    student = EDSR(scale, 4, 8)
    model = CLSD(student, (1, 3), 2)
    lr, hr = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12 * scale, 12 * scale)
    counts = []
    for backend in ("native", "reference"):
        with clsd_fast.use_backend(backend):
            with FlopCounterMode(display=False) as inference, torch.no_grad():
                student(lr)
            with FlopCounterMode(display=False) as step:
                model(lr, hr).losses["total"].backward()
            counts.append((inference.get_total_flops(), step.get_total_flops()))
    assert counts[0] == counts[1] and counts[0][0] > 1_000_000


@pytest.mark.parametrize("first", ["clsd_fast", "torch.utils.flop_counter"])
def test_the_order_of_imports_does_not_matter(first):
    program = f"""
import sys
import {first}
print("torch.utils.flop_counter" in sys.modules)
import clsd_fast, torch, torch.utils.flop_counter as counter
print(torch.ops.clsd_fast.info_nce_backward in counter.flop_registry)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.split() == [str(first != "clsd_fast"), "True"], result.stderr
