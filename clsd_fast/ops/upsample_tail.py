"""The end of EDSR, from features to an image, as one linear map."""

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from .._library import register
from .._tail_axes import STAGES
from ..backend import is_recorded, uses_kernel
from . import _checks
from ._tail import checked, fake, fake_backward
from .conv3x3 import conv3x3
from .pixel_shuffle_upsample import pixel_shuffle_upsample


def upsample_tail(
    x: Tensor,
    up_weights: Sequence[Tensor],
    up_biases: Sequence[Tensor | None],
    out_weight: Tensor,
    out_bias: Tensor | None,
    upscale_factor: int,
) -> Tensor:
    """Convolution and pixel shuffle (twice for 4), then a convolution, composed beforehand.

    Equivalent to::

        for weight, bias in zip(up_weights, up_biases):
            r = 3 if upscale_factor == 3 else 2
            x = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), r)
        F.conv2d(x, out_weight, out_bias, padding=1)

    With no activation between, this is one linear map: a transposed convolution of stride
    ``upscale_factor`` that is 8, 11 or 18 taps wide, with other taps at the borders, where the
    zeros around the intermediate maps show. For K = 3 it takes 1/12 to 1/15 of the multiplications,
    and no map of M channels is made.

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        up_weights: [M * r**2, C, 3, 3], of x's dtype or, beside 16-bit x, float32; of x's device.
            For 4 two, the second of them [L * r**2, M, 3, 3].
        up_biases: [M * r**2] or None, for each of the weights.
        out_weight: [K, M, 3, 3], or [K, L, 3, 3].
        out_bias: [K] or None.
        upscale_factor: 2, 3 or 4.

    Returns:
        [N, K, upscale_factor * H, upscale_factor * W] in x's dtype; channels_last if x is, else
        contiguous.

    Raises:
        ValueError: if a shape, dtype, device, length or the factor does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Under autocast x is cast to the autocast dtype, the parameters are not. For 16-bit x they are
    composed in float32, and the composed weight is rounded.
    Saved for backward: x, the layers' weights and the composed one.
    Native CPU results are bit-equal from run to run and for any number of threads, Triton's from
    run to run. Those kernels copy images once whose channels are not next to each other.

    Source: Lim et al. (arXiv 1707.02921) for the layers; ``docs/tail.md`` for the map.
    """
    op = "upsample_tail"
    (x,) = _checks.cast(x)
    arguments = checked(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor)
    upscale_factor = arguments[-1]
    if is_recorded(x):  # composed, it would be that of images as large as these
        for weight, bias, stage in zip(up_weights, up_biases, STAGES[upscale_factor], strict=True):
            x = pixel_shuffle_upsample(x, weight, bias, stage)
        return conv3x3(x, out_weight, out_bias)
    if uses_kernel(op, x):
        return _upsample_tail(*arguments)[0]
    with _checks.without_autocast(x):
        return reference.upsample_tail(*arguments)[0]


def _setup_context(ctx, inputs, output):
    x, *parameters, out_weight, _, upscale_factor = inputs
    composed = output[1]
    ctx.mark_non_differentiable(composed)
    ctx.set_materialize_grads(False)  # nobody needs zeros for the composed weight
    ctx.save_for_backward(x, composed, *parameters, out_weight)
    ctx.upscale_factor = upscale_factor


def _backward(ctx, grad_output, _):
    if grad_output is None:
        return (None,) * 8
    needs = ctx.needs_input_grad[:7]
    grads = _upsample_tail_backward(
        grad_output, *ctx.saved_tensors, ctx.upscale_factor, needs[0], any(needs[1:])
    )
    return *_checks.given(grads, needs), None


_upsample_tail = register(
    "upsample_tail",
    reference=reference.upsample_tail,
    fake=fake,
    backward=_backward,
    setup_context=_setup_context,
)
_upsample_tail_backward = register(
    "upsample_tail_backward", reference=reference.upsample_tail_backward, fake=fake_backward
)
