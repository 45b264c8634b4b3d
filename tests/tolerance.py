"""The one bound that every result is held to."""

import torch
from torch import Tensor


def rounding(reference: Tensor, dtype: torch.dtype) -> float:
    """What one addition and subtraction in dtype loses at the reference's magnitude."""
    rounded = reference.to(dtype)
    return (rounded + 0.3 - 0.3 - rounded).abs().max().item()


def assert_close(ours: Tensor, reference: Tensor, torch_result: Tensor, name: str) -> None:
    """max|ours - ref| <= 2 max|torch_same_dtype - ref| + 2 max|r + 0.3 - 0.3 - r|.

    Args:
        ours: the result under test, of the tested dtype.
        reference: float64.
        torch_result: plain PyTorch's, of the tested dtype.
        name: for the message.
    """
    assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, not {reference.shape}"
    assert ours.dtype == torch_result.dtype, f"{name}: dtype {ours.dtype}"
    if reference.numel() == 0:
        return
    error = (ours.double() - reference).abs().max().item()
    theirs = (torch_result.double() - reference).abs().max().item()
    bound = 2 * theirs + 2 * rounding(reference, ours.dtype)
    assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g} (PyTorch's {theirs:.3g})"
