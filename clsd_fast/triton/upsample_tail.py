"""One composed tail, as a list of one (``upsample_tails``)."""

from torch import Tensor

from .upsample_tails import upsample_tails, upsample_tails_backward


def _list(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def upsample_tail(
    x: Tensor,
    up_weight1: Tensor,
    up_bias1: Tensor | None,
    up_weight2: Tensor | None,
    up_bias2: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    upscale_factor: int,
) -> tuple[Tensor, Tensor]:
    """[N, C, H, W] to [N, K, r H, r W]; and the composed weight [C + 1, taps, taps, K]."""
    stages = [up_weight1], _list(up_bias1), _list(up_weight2), _list(up_bias2)
    (output,), (composed,) = upsample_tails(
        [x], *stages, [out_weight], _list(out_bias), None, None, upscale_factor
    )
    return output, composed


def upsample_tail_backward(
    grad_output: Tensor,
    x: Tensor,
    composed: Tensor,
    up_weight1: Tensor,
    up_bias1: Tensor | None,
    up_weight2: Tensor | None,
    up_bias2: Tensor | None,
    out_weight: Tensor,
    upscale_factor: int,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x and of the forward's parameters in their order; empty if not needed."""
    stages = [up_weight1], _list(up_bias1), _list(up_weight2), _list(up_bias2)
    options = None, upscale_factor, needs_x, needs_params
    grads = upsample_tails_backward([grad_output], [x], [composed], *stages, [out_weight], *options)
    return tuple(grad for (grad,) in grads)
