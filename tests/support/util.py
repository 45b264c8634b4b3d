"""Cases and comparisons that the operators' tests share."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from tolerance import WINOGRAD_FACTOR, assert_close, assert_draws_close
from torch import Tensor

from clsd_fast.backend import current_backend
from clsd_fast.backend import native as native_backend

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def sliced(x: Tensor) -> Tensor:
    """Every other element of a buffer whose other elements are NaN."""
    buffer = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
    view = buffer[..., 1::2]
    view.copy_(x)
    return view


LAYOUTS = (contiguous, channels_last, sliced)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def leaves(inputs: Sequence[Tensor | None], dtype: torch.dtype, layout: Callable) -> list:
    return [None if t is None else layout(t.to(dtype)).detach().requires_grad_() for t in inputs]


def run(function: Callable, tensors: Sequence[Tensor | None], grad: Tensor | None) -> list[Tensor]:
    """The output, then the gradient of every tensor; `grad` None sums (an expanded gradient)."""
    output = function(*tensors)
    given = [t for t in tensors if t is not None]
    if grad is None:
        output_grads = torch.autograd.grad(output.sum(), given)
    else:
        output_grads = torch.autograd.grad(output, given, grad)
    return [output.detach(), *output_grads]


def compare(
    function: Callable,
    plain: Callable,
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype,
    layout: Callable = contiguous,
    expanded_grad: bool = False,
) -> None:
    """Hold a function and all its gradients to the tolerance rule.

    Args:
        function: under test.
        plain: the equivalent PyTorch.
        inputs: float64 tensors; they are rounded to dtype before any function sees them.
        layout: of the inputs and of the output's gradient.
        expanded_grad: the output's gradient is one element with strides 0.
    """
    results = run_all(function, plain, inputs, dtype, layout, expanded_grad)
    factor = tolerance_factor(inputs, dtype)
    for result in zip(*results, result_names(inputs), strict=True):
        assert_close(*result, factor)


def compare_draws(
    function: Callable,
    plain: Callable,
    draws: Sequence[Sequence[Tensor | None]],
    dtype: torch.dtype,
) -> None:
    """`compare` by `tolerance.assert_draws_close`, for inputs that differ in values alone."""
    results = [run_all(function, plain, inputs, dtype) for inputs in draws]
    for index, name in enumerate(result_names(draws[0])):
        assert_draws_close([[r[index] for r in draw] for draw in results], name)


#: Elements of the inputs of draws that are stacked: more leave the cache and take longer, not less.
STACKED = 1 << 17


def compare_stacked(
    function: Callable,
    plain: Callable,
    draws: Sequence[Sequence[Tensor | None]],
    dtype: torch.dtype,
    at_once: bool = False,
) -> None:
    """`compare_draws` with a plain that takes any number of leading dimensions.

    It computes many draws at once, stacked along one more: one by one, PyTorch's time a call is
    most of a test of small draws.

    Args:
        at_once: the function takes them so too.
    """
    size = max(1, STACKED // sum(t.numel() for t in draws[0] if t is not None))
    results = [
        run_stacked(function, plain, draws[first : first + size], dtype, at_once)
        for first in range(0, len(draws), size)
    ]
    for index, name in enumerate(result_names(draws[0])):
        assert_draws_close([[r[index] for r in stack] for stack in results], name)


def run_stacked(
    function: Callable,
    plain: Callable,
    draws: Sequence[Sequence[Tensor | None]],
    dtype: torch.dtype,
    at_once: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """`run_all` for the stacked draws."""
    inputs = [None if t[0] is None else torch.stack(t).to(dtype) for t in zip(*draws, strict=True)]
    double = leaves(inputs, torch.float64, contiguous)
    output = plain(*double)
    grad = rand(*output.shape[1:], seed=7).to(dtype).expand(output.shape)
    given = [t for t in double if t is not None]
    reference = [output.detach(), *torch.autograd.grad(output, given, grad.double())]
    theirs = run(plain, leaves(inputs, dtype, contiguous), grad)
    before = [t if t is None else t.clone() for t in (*inputs, grad)]
    if at_once:
        ours = run(function, leaves(inputs, dtype, contiguous), grad)
    else:
        ours = run_each(function, inputs, grad)
    for tensor, original in zip((*inputs, grad), before, strict=True):
        assert tensor is None or torch.equal(tensor, original), "an input was written to"
    return ours, reference, theirs


def run_each(function: Callable, inputs: Sequence[Tensor | None], grad: Tensor) -> list[Tensor]:
    """`run` of each element along dimension 0 on its own; the results stacked."""
    results = []
    for index, own_grad in enumerate(grad):
        tensors = [t if t is None else t[index] for t in inputs]
        results.append(run(function, leaves(tensors, grad.dtype, contiguous), own_grad))
    return [torch.stack(result) for result in zip(*results, strict=True)]


def run_all(
    function: Callable,
    plain: Callable,
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype,
    layout: Callable = contiguous,
    expanded_grad: bool = False,
    grad_seed: int = 7,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """`run` of the function, of plain in float64 and of plain in dtype, on unchanged inputs."""
    rounded = [None if t is None else t.to(dtype).double() for t in inputs]
    tested = leaves(rounded, dtype, layout)
    double = leaves(rounded, torch.float64, contiguous)
    exact_grad = tested_grad = None
    if not expanded_grad:
        tested_grad = layout(rand(*plain(*double).shape, seed=grad_seed).to(tested[0]))
        exact_grad = tested_grad.double()
    before = [t if t is None else t.detach().clone() for t in (*tested, tested_grad)]
    ours = run(function, tested, tested_grad)
    reference = run(plain, double, exact_grad)
    theirs = run(plain, leaves(rounded, dtype, layout), tested_grad)
    for tensor, original in zip((*tested, tested_grad), before, strict=True):
        assert tensor is None or torch.equal(tensor, original), "an input was written to"
    return ours, reference, theirs


def result_names(inputs: Sequence[Tensor | None]) -> list[str]:
    return ["output"] + [f"gradient {i}" for i, t in enumerate(inputs) if t is not None]


def tolerance_factor(inputs: Sequence[Tensor | None], dtype: torch.dtype) -> float:
    """What the bound is multiplied by: Winograd's factor where that is the algorithm.

    Args:
        inputs: of a convolution, images and weight before others; rows have no algorithms.
        dtype: of the tested call.
    """
    x, weight = inputs[:2]
    if x.dim() != 4 or current_backend() != "native" or dtype != torch.float32:
        return 1.0
    outputs, channels = weight.shape[:2]
    algorithm = convolution_algorithm(channels, outputs, *x.shape[2:])
    return WINOGRAD_FACTOR if algorithm == "winograd" else 1.0


def convolution_algorithm(channels: int, outputs: int, height: int, width: int) -> str:
    """How the native library convolves float32 images: winograd, narrow_input, ... or direct."""
    choose = ctypes.CDLL(str(native_backend.LIBRARY)).clsd_convolution_algorithm
    choose.argtypes, choose.restype = [ctypes.c_int64] * 4, ctypes.c_char_p
    return choose(channels, outputs, height, width).decode()


def memory_format(x: Tensor) -> str:
    if x.is_contiguous():
        return "contiguous"
    return "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "other"
