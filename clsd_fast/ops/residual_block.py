"""The residual block of EDSR."""

from torch import Tensor

from .. import reference
from .._library import register
from ..backend import uses_kernel
from . import _checks
from ._images import empty_hidden, empty_images, fake_conv_grads


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    res_scale: float | Tensor = 1.0,
) -> Tensor:
    """Two 3x3 convolutions with a ReLU between, scaled and added to the input.

    Equivalent to::

        hidden = F.relu(F.conv2d(x, weight1, bias1, padding=1))
        x + res_scale * F.conv2d(hidden, weight2, bias2, padding=1)

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weight1: [M, C, 3, 3], of x's dtype or, beside 16-bit x, float32; of x's device. EDSR has
            M = C.
        bias1: [M] or None.
        weight2: [C, M, 3, 3].
        bias2: [C] or None.
        res_scale: factor of the branch, as in :func:`clsd_fast.conv3x3`.

    Returns:
        [N, C, H, W] in x's dtype; channels_last if x is, else contiguous.

    Raises:
        ValueError: if a shape, dtype or device does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Under autocast x is cast to the autocast dtype, the skip connection included; the parameters are
    not (:func:`clsd_fast.conv3x3`).
    Saved for backward: x, the weights and the hidden map after its ReLU; nothing is saved, and
    the hidden map is not kept, where no gradient is recorded. Values that are not finite or very
    large are as in :func:`clsd_fast.conv3x3`.

    Source: Lim et al., Enhanced Deep Residual Networks (arXiv 1707.02921), figure 2c.
    """
    op = "residual_block"
    (x,) = _checks.cast(x)
    _checks.check_images(op, "x", x)
    _checks.check_residual_block(op, x, weight1, bias1, weight2, bias2)
    res_scale = _checks.number(op, "res_scale", res_scale)
    if uses_kernel(op, x, weight1, weight2, number=res_scale):
        tensors = (x, weight1, bias1, weight2, bias2)
        save_hidden = _checks.records_gradient(*tensors)
        return _residual_block(*tensors, res_scale, save_hidden)[0]
    with _checks.without_autocast(x):
        return reference.residual_block(x, weight1, bias1, weight2, bias2, res_scale, False)[0]


def _fake(x, weight1, bias1, weight2, bias2, res_scale, save_hidden):
    hidden = empty_hidden(x, weight1) if save_hidden else x.new_empty(0)
    return empty_images(x, x.shape[1]), hidden


def _fake_backward(grad_output, x, hidden, weight1, weight2, res_scale, needs_x, needs_params):
    grad_x, grad_weight1, grad_bias1 = fake_conv_grads(
        x, weight1, needs_x, needs_params, needs_params
    )
    _, grad_weight2, grad_bias2 = fake_conv_grads(
        hidden, weight2, False, needs_params, needs_params
    )
    return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2


def _setup_context(ctx, inputs, output):
    x, weight1, _, weight2, _, res_scale, save_hidden = inputs
    hidden = output[1]
    ctx.mark_non_differentiable(hidden)
    ctx.set_materialize_grads(False)  # nobody needs zeros for the hidden map
    ctx.save_for_backward(x, hidden, weight1, weight2)
    ctx.res_scale, ctx.save_hidden = res_scale, save_hidden


def _backward(ctx, grad_output, _):
    if not ctx.save_hidden:
        raise RuntimeError("residual_block: expected save_hidden=True for a gradient, got False")
    if grad_output is None:
        return (None,) * 7
    needs = ctx.needs_input_grad[:5]
    grads = _residual_block_backward(
        grad_output, *ctx.saved_tensors, ctx.res_scale, needs[0], any(needs[1:])
    )
    return *_checks.given(grads, needs), None, None


_residual_block = register(
    "residual_block",
    reference=reference.residual_block,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_residual_block_backward = register(
    "residual_block_backward", reference=reference.residual_block_backward, fake=_fake_backward
)
