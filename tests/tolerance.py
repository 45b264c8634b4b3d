"""The one bound that every result is held to."""

import math

import torch
from torch import Tensor

#: There is no reference above float64: there, kernels are held to this share of the largest
#: element instead. It covers the order of summation and nothing else.
FLOAT64_SHARE = 1e-13

#: Winograd F(4x4, 3x3) trades rounding error for a quarter of the multiplications. The worst ratio
#: of error to bound over 1000 random float32 convolutions was 4.2, for the gradient of the input
#: (benchmarks/winograd_accuracy.py); PyTorch's own direct convolution is at 0.5.
WINOGRAD_FACTOR = 5.0


def rounding(reference: Tensor, dtype: torch.dtype) -> float:
    """What one addition and subtraction in dtype loses at the reference's magnitude."""
    rounded = reference.to(dtype)
    return (rounded + 0.3 - 0.3 - rounded).abs().max().item()


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
    assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, not {reference.shape}"
    assert ours.dtype == torch_result.dtype, f"{name}: dtype {ours.dtype}"
    if reference.numel() == 0:
        return
    error = (ours.double() - reference).abs().max().item()
    theirs = (torch_result.double() - reference).abs().max().item()
    bound = factor * (2 * theirs + 2 * rounding(reference, ours.dtype))
    if ours.dtype == torch.float64:
        bound = FLOAT64_SHARE * reference.abs().max().item()
    assert math.isfinite(bound), f"{name}: PyTorch's own result is not finite"
    assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g} (PyTorch's {theirs:.3g})"
