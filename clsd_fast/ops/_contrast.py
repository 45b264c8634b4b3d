"""What the operators on rows share: checks of their operands, and fakes."""

import torch
from torch import Tensor

from . import _checks


def check_contrast(
    op: str,
    names: tuple[str, str, str],
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
) -> torch.Size:
    """Check an anchor, its positives and given negatives; return the leading dimensions."""
    _checks.check_rows(op, names[0], anchor)
    if negatives is None and _checks.alike(anchor, positive):
        return anchor.shape[:-2]  # what follows takes as long as a small loss
    count, features = anchor.shape[-2:]
    _checks.check_rows(op, names[1], positive, features)
    if positive.shape[-2] != count:
        _checks.fail(op, f"{names[1]} of shape [..., {count}, {features}]", list(positive.shape))
    if negatives is not None:
        _checks.check_rows(op, names[2], negatives, features)
    given = dict(zip(names, (anchor, positive, negatives), strict=True))
    _checks.check_like(op, anchor, **given)
    return _checks.broadcast_lead(op, **given)


def check_tensors(
    op: str,
    names: tuple[str, str, str],
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
) -> None:
    """They are tensors, of whatever shape."""
    _checks.check_tensor(op, names[0], anchor)
    _checks.check_tensor(op, names[1], positive)
    if negatives is not None:
        _checks.check_tensor(op, names[2], negatives)


def have_their_own(anchor: Tensor, positive: Tensor, negatives: Tensor) -> bool:
    """Whether negatives are each anchor's, [..., N, M, D], and not those of all, [..., M, D]."""
    return negatives.dim() == max(anchor.dim(), positive.dim()) + 1


def one_by_one(
    op: str, names: tuple[str, str, str], anchor: Tensor, positive: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with negatives of their own as batch entries of one row each."""
    check_contrast(op, names, anchor, positive, None)
    count, features = anchor.shape[-2:]
    if negatives.shape[-3] != count or negatives.shape[-1] != features:
        expected = f"{names[2]} of shape [..., {count}, M, {features}] or [..., M, {features}]"
        _checks.fail(op, expected, list(negatives.shape))
    return anchor.unsqueeze(-2), positive.unsqueeze(-2), negatives


def fake_statistic(rows, *leading):
    """A number of each row in the accumulator's dtype."""
    dtype = torch.float32 if rows.element_size() == 2 else rows.dtype
    return rows.new_empty((*leading, *rows.shape[:2]), dtype=dtype)
