"""Batched contrastive (InfoNCE) loss."""

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import runs_native
from . import _common


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    *,
    temperature: float = 0.07,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of picking each row's positive key by cosine similarity.

    Equivalent to::

        q, p = F.normalize(query, dim=-1), F.normalize(positive_key, dim=-1)
        if negative_keys is None:    # the other rows' positives are the negatives
            logits, target = q @ p.mT, torch.arange(N)
        else:
            n = F.normalize(negative_keys, dim=-1)
            logits = torch.cat([(q * p).sum(-1, keepdim=True), q @ n.mT], dim=-1)
            target = torch.zeros(N, dtype=torch.long)
        F.cross_entropy(logits / temperature, target, reduction=reduction)

    Args:
        query: rows [..., N, D]; float32, float64, bfloat16 or float16.
        positive_key: [..., N, D]; row i is the positive of query row i.
        negative_keys: [..., M, D], shared by all rows of a batch, or None.
        temperature: divisor of the similarities, > 0.
        reduction: ``"mean"`` or ``"sum"`` over all rows and leading dimensions, or ``"none"``.

    All tensors have one dtype and device; leading dimensions (such as one per auxiliary head)
    broadcast.

    Returns:
        A 0-dim tensor, or [..., N] for ``reduction="none"``.

    Raises:
        ValueError: if a shape, dtype, device, the temperature or the reduction does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    The native kernel never stores the logits: the forward keeps a running maximum and sum, the
    backward recomputes. With one row and no ``negative_keys`` the loss is 0. A row whose norm
    is below 1e-12 has similarity 0 to everything and gradient 0. Under autocast the inputs are
    cast to float32. Saved for backward: the inputs and two numbers a row.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), with the
    cosine similarity and temperature of SimCLR (arXiv 2002.05709).
    """
    op = "info_nce"
    _common.check_reduction(op, reduction)
    _common.check(temperature > 0, op, "temperature > 0", temperature)
    tensors = _common.cast(query, positive_key, negative_keys, dtype=torch.float32)
    lead = check_contrast(op, ("query", "positive_key", "negative_keys"), tensors)
    query, positive_key, negative_keys = tensors
    if runs_native(op, query):
        rows = [None if t is None else _common.batch_rows(lead, t) for t in tensors]
        loss, _, _ = torch.ops.clsd_fast.info_nce(*rows, temperature)
        return _common.reduce(loss.reshape(*lead, query.shape[-2]), reduction)
    with _common.without_autocast(query):
        loss, _, _ = reference.info_nce(*tensors, temperature)
        return _common.reduce(loss.expand(*lead, query.shape[-2]), reduction)


def check_contrast(
    op: str, names: tuple[str, str, str], tensors: tuple[Tensor, Tensor, Tensor | None]
) -> torch.Size:
    """Check an anchor, its positives and given negatives; return the leading dimensions."""
    anchor, positive, negatives = tensors
    _common.check_rows(op, names[0], anchor)
    features = anchor.shape[-1]
    _common.check_rows(op, names[1], positive, features)
    _common.check(
        positive.shape[-2] == anchor.shape[-2],
        op,
        f"{names[1]} of shape [..., {anchor.shape[-2]}, {features}]",
        list(positive.shape),
    )
    if negatives is not None:
        _common.check_rows(op, names[2], negatives, features)
    given = dict(zip(names, tensors, strict=True))
    _common.check_like(op, anchor, **given)
    return _common.broadcast_lead(op, **given)


def _fake(query, positive_key, negative_keys, temperature):
    return fake_row_outputs(query)


def fake_row_outputs(rows):
    """A loss and two statistics of each row."""
    loss = rows.new_empty(rows.shape[:2])
    statistic = torch.float32 if rows.element_size() == 2 else rows.dtype
    return (
        loss,
        loss.new_empty(loss.shape, dtype=statistic),
        loss.new_empty(loss.shape, dtype=statistic),
    )


def fake_contrast_grads(anchor, positive, negatives):
    """Outputs of a contrastive backward; empty without given negatives."""
    grad_negatives = anchor.new_empty(0 if negatives is None else negatives.shape)
    return anchor.new_empty(anchor.shape), positive.new_empty(positive.shape), grad_negatives


def _fake_backward(grad_loss, maximum, sum_exp, query, positive_key, negative_keys, temperature):
    return fake_contrast_grads(query, positive_key, negative_keys)


def _setup_context(ctx, inputs, output):
    query, positive_key, negative_keys, ctx.temperature = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], query, positive_key, negative_keys)


def _backward(ctx, grad_loss, *_):
    grads = torch.ops.clsd_fast.info_nce_backward(grad_loss, *ctx.saved_tensors, ctx.temperature)
    return *_common.given(grads, ctx.needs_input_grad[:3]), None


register(
    "info_nce",
    reference=reference.info_nce,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
register("info_nce_backward", reference=reference.info_nce_backward, fake=_fake_backward)
