"""Contrastive loss as a ratio of feature distances."""

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import uses_kernel
from ..reference.contrast import reduce
from . import _checks
from ._contrast import check_contrast, check_tensors, fake_statistic, have_their_own, one_by_one

ROWS = ("anchor", "positive", "negatives")


def distance_ratio_loss(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    eps: float | Tensor = 1e-7,
    reduction: str = "mean",
) -> Tensor:
    """Distance to the positive over the mean distance to the negatives.

    Equivalent to, with D(a, b) the mean absolute difference::

        table = (anchor.unsqueeze(-2) - positive.unsqueeze(-3)).abs().mean(-1)
        to_positive = table.diagonal(dim1=-2, dim2=-1)
        to_negatives = (table.sum(-1) - to_positive) / (N - 1)    # or D to the given negatives
        (to_positive / (to_negatives + eps)).mean()

    Args:
        anchor: rows [..., N, D]; float32, float64, bfloat16 or float16. Flatten feature maps.
        positive: [..., N, D]; row i is the positive of anchor row i.
        negatives: [..., M, D], shared by all rows of a batch, or None for the other rows'
            positives, which needs N >= 2. With one dimension more than anchor and positive they are
            [..., N, M, D], M of each anchor's own.
        eps: added to the denominator, >= 0; a number, or a floating-point tensor of one element,
            which gets a gradient (in plain PyTorch; its sign is not checked).
        reduction: ``"mean"`` or ``"sum"`` over all rows and leading dimensions, or ``"none"``.

    All tensors have one dtype and device; leading dimensions broadcast.

    Returns:
        A 0-dim tensor, or [..., N] for ``reduction="none"``.

    Raises:
        ValueError: if a shape, dtype, device, eps or the reduction does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    The gradient where two elements are equal is 0. Under autocast the inputs are cast to
    float32. Saved for backward: the inputs and two distances a row.

    Source: the ratio of CSD (arXiv 2105.11683) on features of the batch, after the figure of
    arXiv 2211.15951.
    """
    op = "distance_ratio_loss"
    _checks.check_reduction(op, reduction)
    eps = _checks.number(op, "eps", eps)
    if not isinstance(eps, Tensor) and not eps >= 0:  # so that nan is refused too
        _checks.fail(op, "eps >= 0", eps)
    anchor, positive, negatives = _checks.cast(anchor, positive, negatives, dtype=torch.float32)
    check_tensors(op, ROWS, anchor, positive, negatives)
    if negatives is not None and have_their_own(anchor, positive, negatives):
        own = one_by_one(op, ROWS, anchor, positive, negatives)
        loss = distance_ratio_loss(*own, eps=eps, reduction=reduction)
        return loss.squeeze(-1) if reduction == "none" else loss
    lead = check_contrast(op, ROWS, anchor, positive, negatives)
    rows = anchor.shape[-2]
    if negatives is None and rows == 1:
        _checks.fail(op, "two rows or given negatives", "1 row")
    if negatives is not None and negatives.shape[-2] == 0:
        _checks.fail(op, "at least 1 row of negatives", 0)
    if uses_kernel(op, anchor, number=eps):
        batched = [_checks.batch_rows(lead, t) for t in (anchor, positive, negatives)]
        loss, _, _ = _distance_ratio_loss(*batched, eps)
        return reduce(loss.reshape(*lead, rows), reduction)
    with _checks.without_autocast(anchor):
        loss, _, _ = reference.distance_ratio_loss(anchor, positive, negatives, eps)
        return reduce(loss.expand(*lead, rows), reduction)


def _fake(anchor, positive, negatives, eps):
    loss = anchor.new_empty(anchor.shape[:2])
    return loss, fake_statistic(anchor), fake_statistic(anchor)


def _fake_backward(
    grad_loss, positive_distance, negative_distance, anchor, positive, negatives, eps
):
    grad_negatives = anchor.new_empty(0 if negatives is None else negatives.shape)
    return anchor.new_empty(anchor.shape), positive.new_empty(positive.shape), grad_negatives


def _setup_context(ctx, inputs, output):
    anchor, positive, negatives, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], anchor, positive, negatives)


def _backward(ctx, grad_loss, *_):
    grads = _distance_ratio_loss_backward(grad_loss, *ctx.saved_tensors, ctx.eps)
    return *_checks.given(grads, ctx.needs_input_grad[:3]), None


_distance_ratio_loss = register(
    "distance_ratio_loss",
    reference=reference.distance_ratio_loss,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_distance_ratio_loss_backward = register(
    "distance_ratio_loss_backward",
    reference=reference.distance_ratio_loss_backward,
    fake=_fake_backward,
)
