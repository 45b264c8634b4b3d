"""Batched contrastive (InfoNCE) loss."""

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import implementation
from . import _checks
from ._contrast import check_contrast, check_tensors, fake_statistic, have_their_own, one_by_one
from ._distributed import gather_rows, roll_columns

#: Of the forward that also computes gradients.
_MOST_CACHED_KEYS = 16_384
ROWS = ("query", "positive_key", "negative_keys")


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    reduction: str = "mean",
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    group: "torch.distributed.ProcessGroup | None" = None,
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
        negative_keys: [..., M, D], shared by all rows of a batch, or None. With one dimension more
            than query and positive_key they are [..., N, M, D], M of each query's own.
        temperature: divisor of the similarities, > 0; a number, or a floating-point tensor of one
            element on query's device, which gets a gradient (its sign is not checked).
        reduction: ``"mean"`` or ``"sum"`` over all rows and leading dimensions, or ``"none"``.
        mask: boolean [..., N, M], or [..., N, N] without negative_keys; True excludes the pair
            from the loss, as for false negatives. The positive is never excluded.
        labels: int64 [..., N], without negative_keys: rows of equal label, such as patches cut
            from one image, are not each other's negatives. Unlike a mask it costs no memory.
        group: process group of ``torch.distributed``. Each rank gives its own rows, as many on
            each; their negatives are the keys of all ranks (negative_keys, if given), and
            gradients flow back to them. The mean over the ranks is then the loss of the
            concatenated batch. mask columns are in the order of the ranks. Not with negatives of
            each query's own.

    All rows have one dtype and device; leading dimensions (such as one per auxiliary head)
    broadcast.

    Returns:
        A 0-dim tensor, or [..., N] for ``reduction="none"``.

    Raises:
        ValueError: if a shape, dtype, device, the temperature or the reduction does not fit, or
            if the ranks of group have different shapes.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    The native kernel never stores the logits of more than some hundred rows. With up to 16,384
    keys, the forward of a reduced loss also computes the gradients (of float32 and float64 rows),
    and they are what is saved. Otherwise it keeps a running maximum and sum, and the backward
    recomputes. With one row and no ``negative_keys`` the loss is 0. A row whose norm is below 1e-12
    has similarity 0 to everything and gradient 0. NaN and infinities go where the formula sends
    them, which gives an excluded pair no gradient whatever its row's loss. In Triton and plain
    PyTorch, the norm of a float32 row that is longer than 1.8e19 overflows, and its similarities
    are 0. Under autocast the rows are cast to float32. Saved for backward: the inputs, and the
    gradients or three numbers a row.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), with the
    cosine similarity and temperature of SimCLR (arXiv 2002.05709).
    """
    op = "info_nce"
    _checks.check_reduction(op, reduction)
    query, positive_key, negative_keys = _checks.cast(
        query, positive_key, negative_keys, dtype=torch.float32
    )
    check_tensors(op, ROWS, query, positive_key, negative_keys)
    if negative_keys is not None and have_their_own(query, positive_key, negative_keys):
        alone = one_by_one(op, ROWS, query, positive_key, negative_keys)
        mask = _check_own(op, alone, mask, labels, group)
        loss = info_nce(*alone, temperature=temperature, reduction=reduction, mask=mask)
        return loss.squeeze(-1) if reduction == "none" else loss
    lead = check_contrast(op, ROWS, query, positive_key, negative_keys)
    learned, number = _check_temperature(op, query, temperature)
    in_batch = negative_keys is None
    keys = (positive_key if negative_keys is None else negative_keys).shape[-2]
    if group is not None:
        keys *= group.size()
    if mask is not None or labels is not None:
        lead = _check_excluded(op, lead, query, keys, in_batch, mask, labels)
    if group is not None:
        positive_key, negative_keys, mask, labels = _gather(
            op, group, positive_key, negative_keys, mask, labels
        )
    kernel = implementation(op, query)
    if kernel != "reference":
        save_gradients = kernel == "native" and reduction != "none"
        loss, _ = _info_nce(
            _checks.batch_rows(lead, query),
            _checks.batch_rows(lead, positive_key),
            _checks.batch_rows(lead, negative_keys),
            _checks.batch_rows(lead, mask),
            None if labels is None else labels.expand(*lead, keys).reshape(-1, keys),
            learned,
            number,
            reduction,
            save_gradients and _saves_gradients(keys, query, positive_key, negative_keys),
        )
        return loss.reshape(*lead, query.shape[-2]) if reduction == "none" else loss
    with _checks.without_autocast(query):
        rows = query, positive_key, negative_keys
        return reference.info_nce(*rows, mask, labels, learned, number, reduction, False)[0]


def _saves_gradients(keys: int, query: Tensor, *others: Tensor | None) -> bool:
    """Whether the CPU's forward computes the gradients, which the backward then scales.

    It saves a quarter of the arithmetic while the logits of a few hundred queries stay in the
    cache. 16-bit gradients would underflow before a loss scale can multiply them.
    """
    if query.element_size() == 2 or keys > _MOST_CACHED_KEYS:
        return False
    return _checks.records_gradient(query, *others)


def _check_temperature(
    op: str, query: Tensor, temperature: float | Tensor
) -> tuple[Tensor | None, float]:
    """The temperature as a 0-dim tensor, or None, and as a number."""
    temperature = _checks.number(op, "temperature", temperature)
    if not isinstance(temperature, Tensor):
        if not temperature > 0:  # so that nan is refused too
            _checks.fail(op, "temperature > 0", temperature)
        return None, temperature
    # In the dtype of the statistics, so that every kernel reads one type.
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    learned = temperature.to(dtype)
    _checks.check_type(op, dtype, query.device, temperature=learned)
    return learned, 1.0


def _check_excluded(
    op: str,
    lead: torch.Size,
    query: Tensor,
    keys: int,
    in_batch: bool,
    mask: Tensor | None,
    labels: Tensor | None,
) -> torch.Size:
    """Check mask and labels; return the leading dimensions with theirs."""
    rows, leads = query.shape[-2], {"rows": lead}
    if mask is not None:
        _checks.check_tensor(op, "mask", mask)
        if mask.shape[-2:] != (rows, keys):
            _checks.fail(op, f"mask of shape [..., {rows}, {keys}]", list(mask.shape))
        _checks.check_type(op, torch.bool, query.device, mask=mask)
        leads["mask"] = mask.shape[:-2]
    if labels is not None:
        if not in_batch:
            _checks.fail(op, "no labels beside negative_keys", "both")
        _checks.check_tensor(op, "labels", labels)
        if labels.shape[-1:] != (rows,):
            _checks.fail(op, f"labels of shape [..., {rows}]", list(labels.shape))
        _checks.check_type(op, torch.int64, query.device, labels=labels)
        leads["labels"] = labels.shape[:-1]
    return _checks.broadcast_shapes(op, leads)


def _check_own(
    op: str,
    rows: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    labels: Tensor | None,
    group: "torch.distributed.ProcessGroup | None",
) -> Tensor | None:
    """The mask of queries one by one, whose negatives are their own, once the options fit that."""
    query, _, negative_keys = rows
    if group is not None:
        _checks.fail(op, "no group beside negative_keys of each query", "both")
    lead, keys = negative_keys.shape[:-3], negative_keys.shape[-2]
    _check_excluded(op, lead, query.squeeze(-2), keys, False, mask, labels)
    return None if mask is None else mask.unsqueeze(-2)


def _gather(
    op: str,
    group: "torch.distributed.ProcessGroup",
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The keys and labels of all ranks, this rank's first, and the mask's columns in that order."""
    keys = gather_rows(op, group, positive_key if negative_keys is None else negative_keys)
    if mask is not None:
        mask = roll_columns(group, mask)
    if negative_keys is not None:
        return positive_key, keys, mask, None
    if labels is not None:
        labels = gather_rows(op, group, labels.unsqueeze(-1)).squeeze(-1)
    return keys, None, mask, labels


def _fake(query, positive_key, negative_keys, mask, labels, learned, *options):
    _, reduction, save_gradients = options
    loss = query.new_empty(query.shape[:2] if reduction == "none" else ())
    if not save_gradients:
        return loss, [fake_statistic(query, 3)]
    return loss, _fake_grads(query, positive_key, negative_keys, learned)


def _fake_grads(*differentiable):
    return [tensor.new_empty(tensor.shape) for tensor in differentiable if tensor is not None]


def _fake_backward(grad_loss, statistics, query, positive_key, negative_keys, *options):
    return _fake_grads(query, positive_key, negative_keys, options[2])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.temperature, ctx.reduction, ctx.save_gradients = inputs
    _, saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.save_for_backward(*tensors, *saved)


def _backward(ctx, grad_loss, _):
    all_saved = ctx.saved_tensors
    tensors, saved = all_saved[:6], all_saved[6:]
    if ctx.save_gradients and not torch.is_grad_enabled():
        grads = [grad * grad_loss for grad in saved]
    else:
        grads = _recomputed_grads(ctx, grad_loss, saved, tensors)
    grad_query, grad_positive, *rest = grads
    grad_negatives = None if tensors[2] is None else rest.pop(0)
    grad_temperature = rest.pop() if rest else None
    return grad_query, grad_positive, grad_negatives, None, None, grad_temperature, None, None, None


def _recomputed_grads(ctx, grad_loss, saved, tensors):
    options = ctx.temperature, ctx.reduction
    if ctx.save_gradients:  # and yet these may be differentiated, which the operator below refuses
        with torch.no_grad():
            _, saved = _info_nce(*tensors, *options, False)
    return _info_nce_backward(grad_loss, *saved, *tensors, *options)


_info_nce = register(
    "info_nce",
    reference=reference.info_nce,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_info_nce_backward = register(
    "info_nce_backward", reference=reference.info_nce_backward, fake=_fake_backward
)
