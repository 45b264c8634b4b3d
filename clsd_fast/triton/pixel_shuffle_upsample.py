"""3x3 convolution (``conv``) that writes its output through a pixel shuffle."""

from torch import Tensor

from .conv.backward import convolutions_backward
from .conv.convolve import Epilogue
from .conv.forward import convolutions
from .conv.packing import Parameters


def pixel_shuffle_upsample(
    x: Tensor, weight: Tensor, bias: Tensor | None, upscale_factor: int
) -> Tensor:
    """[N, C, H, W] to [N, K, r H, r W]."""
    parameters = [Parameters(weight, bias)]
    return convolutions([x], parameters, None, Epilogue(), upscale=upscale_factor)[0]


def pixel_shuffle_upsample_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    upscale_factor: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty if not needed."""
    needs = (needs_x, needs_weight, needs_bias)
    grads = convolutions_backward([grad_output], [x], [weight], 1.0, *needs, upscale=upscale_factor)
    (grad_x,), (grad_weight,), (grad_bias,) = grads
    return grad_x, grad_weight, grad_bias
