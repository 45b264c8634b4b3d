"""The ends of several networks at once: of a student and its heads."""

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from .._library import register
from ..backend import has_kernel
from ..reference.tail import of_tails
from . import _checks
from ._tail import checked, fake, fake_backward

#: up_weights, up_biases, out_weight and out_bias of :func:`clsd_fast.upsample_tail`.
Parameters = tuple[Sequence[Tensor], Sequence[Tensor | None], Tensor, Tensor | None]


def kind_of_tail(x: Tensor, tail: Parameters, upscale_factor: int) -> tuple | None:
    """What tails have in common that :func:`upsample_tails` takes together; None for one that it
    does not take, as there is no kernel for it."""
    (x,) = _checks.cast(x)
    _, up_biases, out_weight, out_bias = tail
    if not has_kernel("upsample_tails", x, out_weight):
        return None
    biases = tuple(bias is None for bias in (*up_biases, out_bias))
    return x.shape, x.dtype, x.device, out_weight.shape[0], biases, upscale_factor


def upsample_tails(
    xs: Sequence[Tensor],
    tails: Sequence[Parameters],
    upscale_factor: int,
    shift: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """Apply each tail to its own images, all by the same launches.

    Equivalent to::

        images = [upsample_tail(x, *tail, upscale_factor) for x, tail in zip(xs, tails)]
        if shift is not None:
            images = [F.conv2d(image.to(shift[0].dtype), *shift) for image in images]

    where a shift is composed with the tails' last convolutions, and its results are not rounded to
    16 bits before.

    Args:
        xs: images [N, C, H, W] that are of one :func:`kind_of_tail` with the tails.
        tails: the parameters of each.
        upscale_factor: 2, 3 or 4.
        shift: constant weight [K, K, 1, 1] and bias [K]; float32 beside 16-bit x, else x's dtype.

    Returns:
        [N, K, upscale_factor * H, upscale_factor * W] of each.
    """
    of_tails = [
        checked("upsample_tails", _checks.cast(x)[0], *tail, upscale_factor)[:-1]
        for x, tail in zip(xs, tails, strict=True)
    ]
    lists = [[t for t in tensors if t is not None] for tensors in zip(*of_tails, strict=True)]
    weight, bias = (None, None) if shift is None else (t.contiguous() for t in shift)
    return _upsample_tails(*lists, weight, bias, upscale_factor)[0]


def _fake(*arguments):
    *lists, shift_weight, _, upscale_factor = arguments
    pairs = [fake(*(*tail, upscale_factor)) for tail in of_tails(*lists)]
    if shift_weight is not None:
        pairs = [(output.to(shift_weight.dtype), composed) for output, composed in pairs]
    return tuple(map(list, zip(*pairs, strict=True)))


def _fake_backward(*arguments):
    *lists, out_weights, _, upscale_factor, needs_x, needs_params = arguments
    grads = [
        fake_backward(*tail, upscale_factor, needs_x, needs_params)
        for tail in of_tails(*lists, out_weights)
    ]
    return tuple(map(list, zip(*grads, strict=True)))


def _setup_context(ctx, inputs, output):
    *lists, out_biases, shift_weight, _, upscale_factor = inputs
    _, composed = output
    ctx.mark_non_differentiable(*composed)
    ctx.set_materialize_grads(False)
    tensors = (tensor for tensors in (composed, *lists) for tensor in tensors)
    ctx.save_for_backward(shift_weight, *tensors)
    ctx.lengths = [len(tensors) for tensors in (composed, *lists)]
    ctx.upscale_factor = upscale_factor


def _backward(ctx, grad_outputs, _):
    needs = ctx.needs_input_grad[:-3]
    at = [i for i, grad in enumerate(grad_outputs) if grad is not None]
    grads = [[None] * len(of_list) for of_list in needs]
    if at:
        shift_weight, *tensors = ctx.saved_tensors
        saved = iter(tensors)
        lists = [[next(saved) for _ in range(length)] for length in ctx.lengths]
        composed, xs, *parameters = (
            [tensors[i] for i in at] if tensors else [] for tensors in lists
        )
        found = _upsample_tails_backward(
            [grad_outputs[i] for i in at],
            xs,
            composed,
            *parameters,
            shift_weight,
            ctx.upscale_factor,
            any(needs[0]),
            any(map(any, needs[1:])),
        )
        for target, of_list, tensors in zip(grads, needs, found, strict=True):
            for i, tensor in zip(at, tensors, strict=True):
                if of_list and of_list[i]:
                    target[i] = tensor
    return *grads, None, None, None


_upsample_tails = register(
    "upsample_tails",
    reference=reference.upsample_tails,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_upsample_tails_backward = register(
    "upsample_tails_backward", reference=reference.upsample_tails_backward, fake=_fake_backward
)
