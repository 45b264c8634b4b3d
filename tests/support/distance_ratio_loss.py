"""distance_ratio_loss in plain PyTorch, and what every backend is held to."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import opcheck

from clsd_fast import distance_ratio_loss
from support.grids import cases
from support.util import compare, contiguous, rand


def plain(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    eps: float = 1e-7,
    reduction: str = "none",
) -> Tensor:
    if negatives is None:
        table = (anchor.unsqueeze(-2) - positive.unsqueeze(-3)).abs().mean(-1)
        to_positive = table.diagonal(dim1=-2, dim2=-1)
        others = 1 - torch.eye(anchor.shape[-2], dtype=anchor.dtype)
        to_negatives = (table * others).sum(-1) / (anchor.shape[-2] - 1)
    else:
        to_positive = (anchor - positive).abs().mean(-1)
        to_negatives = (anchor.unsqueeze(-2) - negatives.unsqueeze(-3)).abs().mean((-2, -1))
    loss = to_positive / (to_negatives + eps)
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def rows(
    batch: Sequence[int], count: int, features: int, negatives: int | None = None
) -> list[Tensor | None]:
    """anchor, positive and, where their number is given, negatives."""
    tensors = [rand(*batch, count, features), rand(*batch, count, features, seed=1)]
    return [*tensors, None if negatives is None else rand(*batch, negatives, features, seed=2)]


def check(
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype = torch.float32,
    layout: Callable = contiguous,
    **options: object,
) -> None:
    compare(
        lambda *t: distance_ratio_loss(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        inputs,
        dtype,
        layout,
    )


def check_operators(negatives: int | None, dtype: torch.dtype) -> None:
    """By opcheck."""
    tensors = [t if t is None else t.to(dtype) for t in rows((2,), 4, 5, negatives)]
    _, own, others = torch.ops.clsd_fast.distance_ratio_loss(*tensors, 0.1)
    backward = torch.ops.clsd_fast.distance_ratio_loss_backward
    opcheck(backward, (rand(2, 4).to(dtype), own, others, *tensors, 0.1))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    opcheck(torch.ops.clsd_fast.distance_ratio_loss, (*leaves, 0.1))


def heads_share_a_positive() -> None:
    compare(
        lambda *t: distance_ratio_loss(*t, reduction="none"),
        lambda anchor, positive: plain(anchor, positive.expand(3, 5, 8)),
        [rand(3, 5, 8), rand(5, 8)],
        torch.float32,
    )


def anchor_at_its_positive() -> None:
    anchor = rand(4, 8).float().requires_grad_()
    loss = distance_ratio_loss(anchor, anchor.detach())
    loss.backward()
    assert loss.item() == 0
    assert anchor.grad.isfinite().all()


def identical_rows_are_finite() -> None:
    anchor = rand(1, 8).expand(4, 8).clone().requires_grad_()
    loss = distance_ratio_loss(anchor, anchor.detach())
    loss.backward()
    assert loss.item() == 0 and (anchor.grad == 0).all()


def empty(batch: tuple[int, ...], count: int) -> None:
    tensors = [t for t in rows(batch, count, 8) if t is not None]
    loss = distance_ratio_loss(*(t.requires_grad_() for t in tensors), reduction="none")
    assert loss.shape == (*batch, count)
    grads = torch.autograd.grad(loss.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


PROPERTIES = [
    *cases(heads_share_a_positive),
    *cases(anchor_at_its_positive),
    *cases(identical_rows_are_finite),
    *cases(empty, batch=[(0,)], count=[4]),
    *cases(empty, batch=[(2,)], count=[0]),
]
