"""A whole training step of CLSD by the Triton kernels, from the model to the last launch."""

import pytest
import torch
from support.steps import assert_step_close, exact_step, step
from support.util import channels_last, rand

import clsd_fast

KERNELS = {
    *(f"conv3x3_{name}_kernel" for name in ("pack", "weight_grad", "bias_grad", "sum")),
    *(f"info_nce_{name}_kernel" for name in ("forward", "query_grad", "key_grad")),
    "conv3x3_kernel",
}


@pytest.fixture
def launched(monkeypatch, interpreted_triton):
    """The names of the kernels as they are launched, and run."""
    from triton_code import MODULES

    from clsd_fast.triton import _launch
    from clsd_fast.triton.conv import gradients, packing

    names = []

    def launch(kernel, *args, **options):
        names.append(kernel.fn.__name__)
        _launch.launch(kernel, *args, **options)

    for name in MODULES:
        monkeypatch.setattr(f"clsd_fast.triton.{name}.launch", launch)
    # The interpreter takes 10 ms a program, however large its blocks.
    monkeypatch.setattr(packing, "BLOCK", 2**14)
    monkeypatch.setattr(gradients, "BLOCK_E", 2**13)
    return names


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.float32, marks=pytest.mark.thorough)]
)
def test_step(launched, dtype):
    """The tails are layer by layer: composed ones take the interpreter minutes."""
    torch.manual_seed(0)
    student = clsd_fast.EDSR(2, num_blocks=2, channels=4, collapse=False)
    model = clsd_fast.CLSD(student, taps=(1, 2), head_blocks=1).to(
        memory_format=torch.channels_last
    )
    lr, hr = (channels_last(255 * rand(2, 3, size, size).float()) for size in (3, 6))
    autocasts = dtype != torch.float32
    ours = step(model, lr, hr, dtype, autocasts)
    assert set(launched) == KERNELS
    with clsd_fast.use_backend("reference"):
        theirs = step(model, lr, hr, dtype, autocasts)
        assert_step_close(ours, exact_step(model, lr, hr), theirs, dtype)
