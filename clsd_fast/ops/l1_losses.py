"""The reconstruction losses of a student and its heads at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._layout import memory_format
from .._library import register
from ..backend import has_kernel


def l1_losses(
    target: Tensor, images: Sequence[Tensor], value_range: float
) -> tuple[Tensor, Tensor]:
    """Mean absolute error of the first image, and the mean of the others' ones.

    Equivalent to::

        first, *others = (F.l1_loss(image, target) / value_range for image in images)
        return first, torch.stack(others).mean()

    Args:
        target: images [N, C, H, W].
        images: of the target's shape; with none but the first, the second result is undefined.
        value_range: divisor of the errors.

    Saved for backward: the target and the images.
    """
    op, arguments = "l1_losses", (target, list(images), value_range)
    kinds = {(image.dtype, image.device) for image in (target, *images)}
    if kinds == {(torch.float32, target.device)} and has_kernel(op, target):
        return _l1_losses(*arguments)
    return reference.l1_losses(*arguments)


def _fake(target, images, value_range):
    return images[0].new_empty(()), images[0].new_empty(())


def _fake_backward(grad_first, grad_others, target, images, value_range):
    layout = memory_format(images[0])
    return [torch.empty_like(image, memory_format=layout) for image in images]


def _setup_context(ctx, inputs, output):
    target, images, ctx.value_range = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(target, *images)


def _backward(ctx, *grads):
    target, *images = ctx.saved_tensors
    needs_target, needs = ctx.needs_input_grad[:2]
    if grads == (None, None):
        return None, [None] * len(images), None
    found = _l1_losses_backward(*grads, target, images, ctx.value_range)
    grad_target = -sum(found) if needs_target else None
    return grad_target, [g if need else None for g, need in zip(found, needs, strict=True)], None


_l1_losses = register(
    "l1_losses",
    reference=reference.l1_losses,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_l1_losses_backward = register(
    "l1_losses_backward", reference=reference.l1_losses_backward, fake=_fake_backward
)
