"""All gradients of convolutions, as operators return them."""

from collections.abc import Sequence

from torch import Tensor

from ...ops._images import empty_images
from .convolve import Convolution, Epilogue, convolve
from .gradients import WeightGradient, weight_gradients
from .images import dense, finish, writable
from .packing import Parameters, pack

Tensors = list[Tensor]


def empty_gradients(
    weights: Sequence[Tensor], needs_weight: bool, needs_bias: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of weights, with their memory format, and of biases; empty if not needed."""
    return (
        [empty_images(w, w.shape[1]) if needs_weight else w.new_empty(0) for w in weights],
        [w.new_empty(w.shape[0] if needs_bias else 0) for w in weights],
    )


def given(tensors: Tensors) -> list[Tensor | None]:
    """None in place of those that were not needed."""
    return [t if t.numel() > 0 else None for t in tensors]


def convolutions_backward(
    grad_outputs: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scale: float,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
    *,
    upscale: int = 1,
) -> tuple[Tensors, Tensors, Tensors]:
    """Gradients of xs, weights and biases of convolutions of one shape; empty if not needed.

    Args:
        upscale: of the pixel shuffle after each convolution.
    """
    grads = [dense(grad) for grad in grad_outputs]
    grad_xs = [x.new_empty(0) for x in xs]
    if needs_x:
        grad_xs = _images_backward(grads, xs, weights, scale, upscale)
    grad_weights, grad_biases = empty_gradients(weights, needs_weight, needs_bias)
    if needs_weight or needs_bias:
        lists = (grads, map(dense, xs), given(grad_weights), given(grad_biases))
        gradients = [WeightGradient(*tensors) for tensors in zip(*lists, strict=True)]
        weight_gradients(gradients, scale, upscale=upscale)
    return grad_xs, grad_weights, grad_biases


def _images_backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scale: float,
    upscale: int,
) -> Tensors:
    outputs = [empty_images(x, x.shape[1]) for x in xs]
    written = list(map(writable, outputs))
    parameters = [Parameters(weight) for weight in weights]
    packed = pack(parameters, xs[0], upscale=upscale, transposed=True)
    convolve(
        list(map(Convolution, grads, written, packed)),
        Epilogue(scale),
        input_upscale=upscale,
    )
    return finish(outputs, written)
