"""3x3 convolutions of several networks at once: of the ends of a student and its heads."""

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from .._library import register
from ..backend import has_kernel
from . import _checks
from ._images import empty_images, fake_conv_grads

#: weight and bias of :func:`clsd_fast.conv3x3`.
Parameters = tuple[Tensor, Tensor | None]


def kind_of_convolution(x: Tensor, parameters: Parameters) -> tuple | None:
    """What convolutions have in common that :func:`conv3x3s` takes together; None for one that it
    does not take, as there is no kernel for it."""
    (x,) = _checks.cast(x)
    weight, bias = parameters
    if not has_kernel("conv3x3s", x, weight):
        return None
    return x.shape, x.dtype, x.device, weight.shape, weight.dtype, bias is None


def conv3x3s(
    xs: Sequence[Tensor], parameters: Sequence[Parameters], residual: Tensor | None
) -> list[Tensor]:
    """Convolve each images by parameters of its own, all by the same launches.

    Equivalent to::

        [conv3x3(x, *p, residual=residual) for x, p in zip(xs, parameters)]

    Args:
        xs: at most 8 images [N, C, H, W] that are of one :func:`kind_of_convolution` with the
            parameters.
        parameters: of each.
        residual: [N, K, H, W] or None, for all. Its gradient is summed up in float32 for 16-bit
            images, and rounded once.

    Returns:
        [N, K, H, W] of each.
    """
    op = "conv3x3s"
    images = [_checks.cast(x)[0] for x in xs]
    if residual is not None:
        (residual,) = _checks.cast(residual)
    for x, (weight, bias) in zip(images, parameters, strict=True):
        _checks.check_images(op, "xs", x)
        _checks.check_conv(op, x, weight, bias)
        _checks.check_shape(op, "residual", residual, [x.shape[0], weight.shape[0], *x.shape[2:]])
        _checks.check_like(op, x, residual=residual)
    weights = [weight for weight, _ in parameters]
    biases = [bias for _, bias in parameters if bias is not None]
    return _conv3x3s(images, weights, biases, residual)


def _fake(xs, weights, biases, residual):
    return [empty_images(x, weight.shape[0]) for x, weight in zip(xs, weights, strict=True)]


def _fake_backward(grad_outputs, xs, weights, needs_x, needs_params, needs_residual):
    grads = [
        fake_conv_grads(x, weight, needs_x, needs_params, needs_params)
        for x, weight in zip(xs, weights, strict=True)
    ]
    x, outputs = xs[0], weights[0].shape[0]
    residual = empty_images(x, outputs) if needs_residual else x.new_empty(0)
    return *map(list, zip(*grads, strict=True)), residual


def _setup_context(ctx, inputs, output):
    xs, weights, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*xs, *weights)


def _backward(ctx, grad_outputs):
    *needs, needs_residual = ctx.needs_input_grad
    at = [i for i, grad in enumerate(grad_outputs) if grad is not None]
    grads = [[None] * len(of_list) for of_list in needs]
    grad_residual = None
    if at:
        tensors, count = ctx.saved_tensors, len(grad_outputs)
        given, xs, weights = (
            [list_of[i] for i in at] for list_of in (grad_outputs, tensors[:count], tensors[count:])
        )
        needs_params = any(map(any, needs[1:]))
        is_sum = needs_residual and len(at) > 1
        *found, total = _conv3x3s_backward(given, xs, weights, any(needs[0]), needs_params, is_sum)
        for target, of_list, results in zip(grads, needs, found, strict=True):
            for i, tensor in zip(at, results, strict=True):
                if target and of_list[i]:  # there may be no biases
                    target[i] = tensor
        if needs_residual:
            grad_residual = total if is_sum else given[0]
    return *grads, grad_residual


_conv3x3s = register(
    "conv3x3s",
    reference=reference.conv3x3s,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_conv3x3s_backward = register(
    "conv3x3s_backward", reference=reference.conv3x3s_backward, fake=_fake_backward
)
