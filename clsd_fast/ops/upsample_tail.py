"""The end of EDSR, from features to an image, as one linear map."""

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from .._library import register
from .._tail_axes import AXES, STAGES
from ..backend import uses_kernel
from . import _checks
from ._images import empty_images


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
    _check_lengths(op, up_weights, up_biases, upscale_factor)
    (x,) = _checks.cast(x)
    _checks.check_images(op, "x", x)
    _check_parameters(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor)
    stages = [t for pair in zip(up_weights, up_biases, strict=True) for t in pair]
    stages += [None] * (4 - len(stages))
    arguments = x, *map(_accumulated, (*stages, out_weight, out_bias)), upscale_factor
    if uses_kernel(op, x):
        return _upsample_tail(*arguments)[0]
    with _checks.without_autocast(x):
        return reference.upsample_tail(*arguments)[0]


def _check_lengths(op, up_weights, up_biases, upscale_factor):
    if upscale_factor not in STAGES:
        *others, last = map(str, STAGES)
        _checks.fail(op, f"upscale_factor {', '.join(others)} or {last}", upscale_factor)
    count = len(STAGES[upscale_factor])
    for name, tensors in (("up_weights", up_weights), ("up_biases", up_biases)):
        if len(tensors) != count:
            _checks.fail(op, f"{count} {name} for upscale_factor {upscale_factor}", len(tensors))


def _check_parameters(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor):
    channels = x.shape[1]
    stages = zip(STAGES[upscale_factor], up_weights, up_biases, strict=True)
    for number, (stage, weight, bias) in enumerate(stages):
        name, square = f"up_weights[{number}]", stage**2
        shape = weight.shape
        if len(shape) != 4 or shape[0] < 1 or shape[0] % square or shape[1:] != (channels, 3, 3):
            _checks.fail(op, f"{name} of shape [{square} M, {channels}, 3, 3]", list(shape))
        _checks.check_shape(op, f"up_biases[{number}]", bias, [shape[0]])
        parameters = {name: weight, f"up_biases[{number}]": bias}
        _checks.check_parameters(op, x, up_weights[0], **parameters)
        channels = shape[0] // square
    shape = out_weight.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (channels, 3, 3):
        _checks.fail(op, f"out_weight of shape [K, {channels}, 3, 3]", list(shape))
    _checks.check_shape(op, "out_bias", out_bias, [shape[0]])
    _checks.check_parameters(op, x, up_weights[0], out_weight=out_weight, out_bias=out_bias)


def _accumulated(parameter):
    if parameter is None or parameter.element_size() > 2:
        return parameter
    return parameter.float()


def _fake(x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight, out_bias, upscale_factor):
    taps = AXES[upscale_factor][0].size
    composed = out_weight.new_empty(x.shape[1] + 1, taps, taps, out_weight.shape[0])
    return empty_images(x, out_weight.shape[0], upscale_factor), composed


def _fake_backward(grad_output, x, composed, *arguments):
    up_weight1, _, up_weight2, _, out_weight, _, needs_x, needs_params = arguments
    grad_x = empty_images(x, x.shape[1]) if needs_x else x.new_empty(0)
    grads = []
    for weight in (up_weight1, up_weight2, out_weight):
        if needs_params and weight is not None:
            grads += [empty_images(weight, weight.shape[1]), composed.new_empty(weight.shape[0])]
        else:
            grads += [composed.new_empty(0), composed.new_empty(0)]
    return grad_x, *grads


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
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_upsample_tail_backward = register(
    "upsample_tail_backward", reference=reference.upsample_tail_backward, fake=_fake_backward
)
