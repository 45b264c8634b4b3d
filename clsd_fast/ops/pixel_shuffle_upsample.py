"""Sub-pixel convolution: one stage of EDSR's upsampler."""

import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import is_recorded, uses_kernel
from . import _checks
from ._images import empty_images, fake_conv_grads
from .conv3x3 import conv3x3


def pixel_shuffle_upsample(
    x: Tensor, weight: Tensor, bias: Tensor | None, upscale_factor: int
) -> Tensor:
    """3x3 convolution that writes its output through a pixel shuffle.

    Equivalent to::

        F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), upscale_factor)

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weight: [K * upscale_factor**2, C, 3, 3], of x's dtype or, beside 16-bit x, float32; of x's
            device.
        bias: [K * upscale_factor**2] or None.
        upscale_factor: r >= 1.

    Returns:
        [N, K, r * H, r * W] in x's dtype; channels_last if x is, else contiguous.

    Raises:
        ValueError: if a shape, dtype, device or the factor does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Autocast, and values that are not finite or very large, are as in :func:`clsd_fast.conv3x3`.
    Saved for backward: x and weight.

    Source: Shi et al., sub-pixel convolution (arXiv 1609.05158).
    """
    op = "pixel_shuffle_upsample"
    (x,) = _checks.cast(x)
    _checks.check_images(op, "x", x)
    upscale_factor = _checks.integer(op, "upscale_factor", upscale_factor)
    if upscale_factor < 1:
        _checks.fail(op, "upscale_factor >= 1", upscale_factor)
    _checks.check_conv(op, x, weight, bias)
    square = upscale_factor**2
    if weight.shape[0] % square:
        expected = f"weight of shape [{square} K, {x.shape[1]}, 3, 3]"
        _checks.fail(op, expected, list(weight.shape))
    if is_recorded(x):  # as what others call DepthToSpace
        return F.pixel_shuffle(conv3x3(x, weight, bias), upscale_factor)
    if uses_kernel(op, x, weight, upscale_factor=upscale_factor):
        return _pixel_shuffle_upsample(x, weight, bias, upscale_factor)
    with _checks.without_autocast(x):
        return reference.pixel_shuffle_upsample(x, weight, bias, upscale_factor)


def _fake(x, weight, bias, upscale_factor):
    return empty_images(x, weight.shape[0] // upscale_factor**2, upscale_factor)


def _fake_backward(grad_output, x, weight, upscale_factor, needs_x, needs_weight, needs_bias):
    return fake_conv_grads(x, weight, needs_x, needs_weight, needs_bias)


def _setup_context(ctx, inputs, output):
    x, weight, _, upscale_factor = inputs
    ctx.save_for_backward(x, weight)
    ctx.upscale_factor = upscale_factor


def _backward(ctx, grad_output):
    needs = ctx.needs_input_grad[:3]
    grads = _pixel_shuffle_upsample_backward(
        grad_output, *ctx.saved_tensors, ctx.upscale_factor, *needs
    )
    return *_checks.given(grads, needs), None


_pixel_shuffle_upsample = register(
    "pixel_shuffle_upsample",
    reference=reference.pixel_shuffle_upsample,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_pixel_shuffle_upsample_backward = register(
    "pixel_shuffle_upsample_backward",
    reference=reference.pixel_shuffle_upsample_backward,
    fake=_fake_backward,
)
