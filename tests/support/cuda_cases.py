"""Calls of the CUDA operators at the sizes of training, for a GPU."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from clsd_fast.backend import cuda as cuda_backend
from clsd_fast.backend import native as native_backend
from support.util import channels_last, rand

CONVOLUTIONS = ("conv3x3", "residual_block", "pixel_shuffle_upsample")
DTYPES = (torch.bfloat16, torch.float16)
#: What `emulated.check` takes the operators from: those of tensors on the GPU.
ON_GPU = SimpleNamespace(ops=torch.ops.clsd_fast)


def lacking() -> str | None:
    """What this machine lacks to run CUDA kernels, if anything."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "a CUDA device"
    if torch.cuda.get_device_capability() < cuda_backend.CAPABILITY:
        return f"a GPU of compute capability {'.'.join(map(str, cuda_backend.CAPABILITY))}"
    return None


#: Of every module of tests for a GPU.
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(lacking() is not None, reason=f"needs {lacking()}"),
]


def require(op: str) -> None:
    """Skip a test of an operator without CUDA kernels; test_every_convolution_is_native fails."""
    if op not in native_backend.cuda_operators:
        reason = native_backend.cuda_missing or "_C_cuda.so has none"
        pytest.skip(f"needs the CUDA kernels of {op}: {reason}")


class Case(NamedTuple):
    """Images [N, C, H, W] and the other channels: outputs, or those between two convolutions."""

    op: str
    shape: tuple[int, int, int, int]
    channels: int
    factor: int = 1

    def __str__(self) -> str:
        factor = f" x{self.factor}" if self.factor > 1 else ""
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.channels}{factor}"


#: One call of each operator as in a training step.
TRAINING = [
    Case("conv3x3", (16, 64, 48, 48), 64),
    Case("conv3x3", (16, 3, 48, 48), 64),
    Case("conv3x3", (16, 64, 96, 96), 3),
    Case("residual_block", (16, 64, 48, 48), 64),
    Case("pixel_shuffle_upsample", (16, 64, 48, 48), 64, 2),
]
OTHERS = [
    Case("conv3x3", (1, 64, 1, 1), 64),
    Case("conv3x3", (3, 64, 50, 49), 64),
    Case("conv3x3", (2, 80, 33, 7), 112),
    Case("conv3x3", (4, 128, 24, 24), 256),
    Case("conv3x3", (2, 256, 17, 96), 16),
    Case("conv3x3", (3, 3, 37, 51), 80),
    Case("conv3x3", (3, 144, 51, 37), 2),
    Case("residual_block", (3, 64, 50, 49), 64),
    Case("residual_block", (2, 16, 31, 65), 48),
    Case("pixel_shuffle_upsample", (16, 64, 48, 48), 64, 3),
    # The second stage of x4, and x4 in one.
    Case("pixel_shuffle_upsample", (4, 64, 96, 96), 64, 2),
    Case("pixel_shuffle_upsample", (2, 64, 25, 31), 64, 4),
]
#: Enough for several blocks of every kernel, and few enough for compute-sanitizer.
SMALL = [
    Case("conv3x3", (2, 64, 9, 17), 64),
    Case("conv3x3", (1, 80, 9, 17), 48),
    Case("conv3x3", (2, 3, 9, 17), 64),
    Case("conv3x3", (2, 64, 9, 17), 3),
    Case("residual_block", (2, 64, 13, 25), 64),
    Case("pixel_shuffle_upsample", (2, 64, 5, 9), 64, 2),
]

Call = tuple[str, tuple]


def calls(
    case: Case, dtype: torch.dtype = torch.bfloat16, layout: Callable = channels_last
) -> list[Call]:
    """The case's forward and backward, every gradient asked for, as (operator, arguments)."""
    batch, inputs, height, width = case.shape
    square = case.factor**2

    def weight(outputs, inputs):
        return on_gpu(rand(outputs, inputs, 3, 3) / (3 * inputs**0.5))

    def on_gpu(tensor):
        return layout(tensor.to("cuda", dtype))

    x, bias = on_gpu(rand(*case.shape)), on_gpu(rand(case.channels * square))
    if case.op == "residual_block":
        hidden = on_gpu(rand(batch, case.channels, height, width).relu())
        weights = weight(case.channels, inputs), weight(inputs, case.channels)
        first, second = (weights[0], bias), (weights[1], on_gpu(rand(inputs)))
        grad = on_gpu(rand(*case.shape, seed=1))
        return [
            (case.op, (x, *first, *second, 0.1, True)),
            (f"{case.op}_backward", (grad, x, hidden, *weights, 0.1, True, True)),
        ]
    kernels = weight(case.channels * square, inputs)
    shape = (batch, case.channels, height * case.factor, width * case.factor)
    grad = on_gpu(rand(*shape, seed=1))
    if case.op == "conv3x3":
        return [
            (case.op, (x, kernels, bias, None, 1.0, False)),
            (case.op, (x, kernels, bias, grad, 0.1, True)),
            (f"{case.op}_backward", (grad, x, kernels, 0.5, True, True, True)),
        ]
    return [
        (case.op, (x, kernels, bias, case.factor)),
        (f"{case.op}_backward", (grad, x, kernels, case.factor, True, True, True)),
    ]


def outputs(calls: Iterable[Call]) -> list[Tensor]:
    """All results of all calls."""
    results = []
    for op, arguments in calls:
        result = getattr(torch.ops.clsd_fast, op)(*arguments)
        results += [result] if isinstance(result, Tensor) else result
    return results


def tensors_of(calls: Iterable[Call]) -> list[Tensor]:
    """Every tensor among the arguments, once."""
    found = [a for _, arguments in calls for a in arguments if isinstance(a, Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


def assert_equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    """Every bit; they are finite."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)
