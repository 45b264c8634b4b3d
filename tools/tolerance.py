"""The one bound that every result is held to."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: There is no reference above float64: there, kernels are held to this share of the largest
#: element instead. It covers the order of summation and nothing else.
FLOAT64_SHARE = 1e-13

#: Winograd F(4x4, 3x3) trades rounding error for a quarter of the multiplications. The worst ratio
#: of error to bound over 1000 random float32 convolutions was 4.6, for the gradient of the input
#: (benchmarks/winograd_accuracy.py); PyTorch's own direct convolution is at 0.5.
WINOGRAD_FACTOR = 5.0

#: How far the largest error of several draws may lie above the bound that PyTorch's largest gives.
#: Errors of a softmax at temperature 0.01 have a heavy tail: the one row with two nearly equal
#: logits makes the maximum. A wrong kernel is off by orders of magnitude.
DRAWS_FACTOR = 8.0


def rounding(reference: Tensor, dtype: torch.dtype) -> float:
    """What one addition and subtraction in dtype loses at the reference's magnitude."""
    rounded = reference.to(dtype)
    return (rounded + 0.3 - 0.3 - rounded).abs().max().item()


def bound(reference: Tensor, torch_result: Tensor, norm: Callable[[Tensor], float]) -> float:
    """2 norm(torch_result - reference) + 2 `rounding`: what the norm of our errors is held to."""
    theirs = norm(torch_result.double() - reference)
    return 2 * theirs + 2 * rounding(reference, torch_result.dtype)


def assert_close(
    ours: Tensor, reference: Tensor, torch_result: Tensor, name: str, factor: float = 1.0
) -> None:
    """max|ours - ref| <= factor * (2 max|torch_same_dtype - ref| + 2 max|r + 0.3 - 0.3 - r|).

    In float64, where ref is torch's own result: max|ours - ref| <= FLOAT64_SHARE max|ref|.

    Args:
        ours: the result under test, of the tested dtype.
        reference: float64.
        torch_result: plain PyTorch's, of the tested dtype.
        name: for the message.
        factor: 1, or a named exception of this file.
    """
    _assert_alike(ours, reference, torch_result, name)
    if reference.numel() == 0:
        return
    error, theirs = largest(ours.double() - reference), largest(torch_result.double() - reference)
    limit = factor * bound(reference, torch_result, largest)
    if ours.dtype == torch.float64:
        limit = FLOAT64_SHARE * reference.abs().max().item()
    assert math.isfinite(limit), f"{name}: PyTorch's own result is not finite"
    assert error <= limit, f"{name}: error {error:.3g}, bound {limit:.3g} (PyTorch's {theirs:.3g})"


def assert_draws_close(draws: Sequence[tuple[Tensor, Tensor, Tensor]], name: str) -> None:
    """The rule for results of so few elements that PyTorch's largest error may be 0 by chance.

    It is held by the root mean squares over all elements of several draws, in place of the maxima,
    and DRAWS_FACTOR times it by the maxima.

    Args:
        draws: ours, the reference and plain PyTorch's of each.
        name: for the message.
    """
    for draw in draws:
        _assert_alike(*draw, name)
    ours, reference, theirs = (
        torch.cat([t.flatten() for t in r]) for r in zip(*draws, strict=True)
    )
    assert theirs.isfinite().all(), f"{name}: PyTorch's own result is not finite"
    for norm, factor in ((root_mean_square, 1.0), (largest, DRAWS_FACTOR)):
        error, limit = norm(ours.double() - reference), factor * bound(reference, theirs, norm)
        what = f"{name}: {norm.__name__} of {len(draws)} draws' errors"
        assert error <= limit, f"{what} {error:.3g}, bound {limit:.3g}"


def root_mean_square(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()


def largest(errors: Tensor) -> float:
    return errors.abs().max().item()


def _assert_alike(ours: Tensor, reference: Tensor, torch_result: Tensor, name: str) -> None:
    assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, not {reference.shape}"
    assert ours.dtype == torch_result.dtype, f"{name}: dtype {ours.dtype}"
