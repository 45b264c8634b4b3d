"""3x3 convolution with its epilogue (``conv``)."""

from torch import Tensor

from .conv.backward import convolutions_backward
from .conv.convolve import Epilogue
from .conv.forward import convolutions
from .conv.packing import Parameters


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    res_scale: float,
    relu: bool,
    negative_slope: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    """[N, C, H, W] to [N, K, H, W]. Images whose channels are apart are copied once.

    With relu, negative results are multiplied by negative_slope or, where given, by slopes [K].
    """
    parameters = Parameters(weight, bias, slopes if relu else None)
    epilogue = Epilogue(res_scale, relu, negative_slope)
    return convolutions([x], [parameters], residual, epilogue)[0]


def conv3x3_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    res_scale: float,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty if not needed."""
    needs = (needs_x, needs_weight, needs_bias)
    grads = convolutions_backward([grad_output], [x], [weight], res_scale, *needs)
    (grad_x,), (grad_weight,), (grad_bias,) = grads
    return grad_x, grad_weight, grad_bias
