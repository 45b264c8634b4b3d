"""3x3 convolutions of several images of one shape (``conv``), by the same launches."""

import torch
from torch import Tensor

from .._layout import in_format_of
from .conv.backward import convolutions_backward
from .conv.convolve import Epilogue
from .conv.forward import convolutions
from .conv.packing import Parameters


def conv3x3s(
    xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> list[Tensor]:
    """[N, K, H, W] of each; the residual is added to all."""
    none: list[Tensor | None] = [None] * len(xs)
    parameters = list(map(Parameters, weights, biases or none))
    return convolutions(xs, parameters, residual, Epilogue())


def conv3x3s_backward(
    grad_outputs: list[Tensor],
    xs: list[Tensor],
    weights: list[Tensor],
    needs_x: bool,
    needs_params: bool,
    needs_residual: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Gradients of xs, weights, biases, and of the residual, which is rounded once."""
    needs = (needs_x, needs_params, needs_params)
    grads = convolutions_backward(grad_outputs, xs, weights, 1.0, *needs)
    residual = xs[0].new_empty(0)
    if needs_residual:
        # PyTorch sums 16-bit tensors in float32.
        residual = in_format_of(xs[0], torch.stack(grad_outputs).sum(0))
    return *grads, residual
