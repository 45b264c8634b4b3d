"""Batched contrastive (InfoNCE) loss."""

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import runs_native
from . import _common
from ._distributed import gather_rows, roll_columns


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
        negative_keys: [..., M, D], shared by all rows of a batch, or None.
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
            concatenated batch. mask columns are in the order of the ranks.

    All rows have one dtype and device; leading dimensions (such as one per auxiliary head)
    broadcast.

    Returns:
        A 0-dim tensor, or [..., N] for ``reduction="none"``.

    Raises:
        ValueError: if a shape, dtype, device, the temperature or the reduction does not fit, or
            if the ranks of group have different shapes.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    The native kernel never stores the logits: the forward keeps a running maximum and sum, the
    backward recomputes. With one row and no ``negative_keys`` the loss is 0. A row whose norm
    is below 1e-12 has similarity 0 to everything and gradient 0. Under autocast the rows are
    cast to float32. Saved for backward: the inputs and three numbers a row.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), with the
    cosine similarity and temperature of SimCLR (arXiv 2002.05709).
    """
    op = "info_nce"
    _common.check_reduction(op, reduction)
    query, positive_key, negative_keys = _common.cast(
        query, positive_key, negative_keys, dtype=torch.float32
    )
    names = ("query", "positive_key", "negative_keys")
    lead = check_contrast(op, names, (query, positive_key, negative_keys))
    learned, number = _check_temperature(op, query, temperature)
    ranks = 1 if group is None else group.size()
    keys = ranks * (positive_key if negative_keys is None else negative_keys).shape[-2]
    lead = _check_excluded(op, lead, query, keys, negative_keys is None, mask, labels)
    if group is not None:
        positive_key, negative_keys, mask, labels = _gather(
            op, group, positive_key, negative_keys, mask, labels
        )
    rows, options = (query, positive_key, negative_keys), (learned, number)
    if runs_native(op, query):
        rows = (None if t is None else _common.batch_rows(lead, t) for t in rows)
        excluded = (_batch(lead, mask, 2), _batch(lead, labels, 1))
        loss = torch.ops.clsd_fast.info_nce(*rows, *excluded, *options)[0]
        return _common.reduce(loss.reshape(*lead, query.shape[-2]), reduction)
    with _common.without_autocast(query):
        loss = reference.info_nce(*rows, mask, labels, *options)[0]
        return _common.reduce(loss.expand(*lead, query.shape[-2]), reduction)


def _check_temperature(
    op: str, query: Tensor, temperature: float | Tensor
) -> tuple[Tensor | None, float]:
    """The temperature as a 0-dim tensor, or None, and as a number."""
    if not isinstance(temperature, Tensor):
        _common.check(temperature > 0, op, "temperature > 0", temperature)
        return None, temperature
    expected = f"temperature a floating-point tensor of one element on {query.device}"
    good = temperature.numel() == 1 and temperature.is_floating_point()
    got = f"{_name(temperature.dtype)} of shape {list(temperature.shape)} on {temperature.device}"
    _common.check(good and temperature.device == query.device, op, expected, got)
    # In the dtype of the statistics, so that every kernel reads one type.
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return temperature.reshape(()).to(dtype), 1.0


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
    rows = query.shape[-2]
    shapes = [lead]
    if mask is not None:
        good = mask.dim() >= 2 and list(mask.shape[-2:]) == [rows, keys]
        _common.check(good, op, f"mask of shape [..., {rows}, {keys}]", list(mask.shape))
        _common.check(mask.dtype == torch.bool, op, "mask of dtype bool", _name(mask.dtype))
        _common.check(mask.device == query.device, op, f"mask on {query.device}", mask.device)
        shapes.append(mask.shape[:-2])
    if labels is not None:
        _common.check(in_batch, op, "no labels beside negative_keys", "both")
        good = labels.dim() >= 1 and labels.shape[-1] == rows
        _common.check(good, op, f"labels of shape [..., {rows}]", list(labels.shape))
        _common.check(labels.dtype == torch.int64, op, "labels of dtype int64", _name(labels.dtype))
        _common.check(labels.device == query.device, op, f"labels on {query.device}", labels.device)
        shapes.append(labels.shape[:-1])
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        got = ", ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{op}: expected leading dimensions that broadcast, got {got}") from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _batch(lead: torch.Size, tensor: Tensor | None, dims: int) -> Tensor | None:
    """The last dims dimensions of a tensor, broadcast to lead and with that flattened."""
    if tensor is None:
        return None
    tail = tensor.shape[tensor.dim() - dims :]
    return tensor.expand(*lead, *tail).reshape(lead.numel(), *tail)


def _gather(
    op: str,
    group: "torch.distributed.ProcessGroup",
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The keys and labels of all ranks, this rank's first, and the mask's columns in that order."""
    in_batch = negative_keys is None
    keys = gather_rows(op, group, positive_key if in_batch else negative_keys)
    if mask is not None:
        mask = roll_columns(group, mask)
    if not in_batch:
        return positive_key, keys, mask, None
    if labels is not None:
        labels = gather_rows(op, group, labels.unsqueeze(-1)).squeeze(-1)
    return keys, None, mask, labels


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


def _fake(query, *_):
    return *fake_row_outputs(query), query.new_empty(query.shape[:2], dtype=_statistic(query))


def _statistic(rows):
    return torch.float32 if rows.element_size() == 2 else rows.dtype


def fake_row_outputs(rows):
    """A loss and two statistics of each row."""
    loss = rows.new_empty(rows.shape[:2])
    return loss, *(loss.new_empty(loss.shape, dtype=_statistic(rows)) for _ in range(2))


def fake_contrast_grads(anchor, positive, negatives):
    """Outputs of a contrastive backward; empty without given negatives."""
    grad_negatives = anchor.new_empty(0 if negatives is None else negatives.shape)
    return anchor.new_empty(anchor.shape), positive.new_empty(positive.shape), grad_negatives


def _fake_backward(grad_loss, maximum, sum_exp, spread, query, *options):
    *_, learned_temperature, _ = options
    empty = learned_temperature is None
    grad_temperature = query.new_empty(0) if empty else torch.empty_like(learned_temperature)
    return *fake_contrast_grads(query, *options[:2]), grad_temperature


def _setup_context(ctx, inputs, output):
    *tensors, ctx.temperature = inputs
    _, maximum, sum_exp, spread = output
    ctx.mark_non_differentiable(maximum, sum_exp, spread)
    ctx.save_for_backward(maximum, sum_exp, spread, *tensors)


def _backward(ctx, grad_loss, *_):
    grads = torch.ops.clsd_fast.info_nce_backward(grad_loss, *ctx.saved_tensors, ctx.temperature)
    needed = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[5])
    *grads, grad_temperature = _common.given(grads, needed)
    return *grads, None, None, grad_temperature, None


register(
    "info_nce",
    reference=reference.info_nce,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
register("info_nce_backward", reference=reference.info_nce_backward, fake=_fake_backward)
