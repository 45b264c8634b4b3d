"""info_nce in plain PyTorch, and what every backend is held to."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from clsd_fast import info_nce
from support.grids import cases
from support.util import compare, compare_draws, contiguous, rand


def plain(
    query: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    reduction: str = "none",
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    q, p = F.normalize(query, dim=-1), F.normalize(positive, dim=-1)
    if negative is None:
        logits = q @ p.mT / temperature
        target = torch.arange(q.shape[-2]).expand(logits.shape[:-1])
        own = torch.eye(q.shape[-2], dtype=torch.bool)
        mask = None if mask is None else mask & ~own
        if labels is not None:
            same = (labels.unsqueeze(-1) == labels.unsqueeze(-2)) & ~own
            mask = same if mask is None else mask | same
    else:
        own = (q * p).sum(-1, keepdim=True)
        logits = torch.cat([own, q @ F.normalize(negative, dim=-1).mT], dim=-1) / temperature
        target = torch.zeros(logits.shape[:-1], dtype=torch.long)
        mask = None if mask is None else F.pad(mask, (1, 0))
    if mask is not None:
        logits = logits.masked_fill(mask, -math.inf)
    loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    loss = loss.unflatten(0, logits.shape[:-1])
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def rows(
    batch: Sequence[int], count: int, features: int, negatives: int | None = None, seed: int = 0
) -> list[Tensor | None]:
    """query, positive_key and, where their number is given, negative_keys."""
    shapes = [(*batch, count, features)] * 2
    shapes.append(None if negatives is None else (*batch, negatives, features))
    return [s if s is None else rand(*s, seed=3 * seed + i) for i, s in enumerate(shapes)]


def random_mask(*shape: int) -> Tensor:
    return rand(*shape, seed=9) > 0


def check(
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype = torch.float32,
    layout: Callable = contiguous,
    **options: object,
) -> None:
    compare(
        lambda *t: info_nce(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        inputs,
        dtype,
        layout,
    )


def check_together(draws: Sequence[Sequence[Tensor | None]], **options: object) -> None:
    """`check` in float32 of draws that differ in values alone."""
    compare_draws(
        lambda *t: info_nce(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        draws,
        torch.float32,
    )


def check_mask(
    count: int, negatives: int | None, dtype: torch.dtype, transposed: bool, heads: int = 40
) -> None:
    keys = count if negatives is None else negatives
    shape = (heads, keys, count) if transposed else (heads, count, keys)
    mask = random_mask(*shape).mT if transposed else random_mask(*shape)
    check(rows((heads,), count, 16, negatives), dtype, mask=mask)


def check_labels(count: int, kinds: int, dtype: torch.dtype, heads: int = 40) -> None:
    labels = (rand(heads, count, seed=5) * 1000).long() % kinds
    check(rows((heads,), count, 16), dtype, labels=labels)


def check_learned_temperature(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """It keeps its dtype and shape, and so does its gradient."""
    query, positive, _ = (t if t is None else t.float() for t in rows((2,), 6, 8))
    temperature = torch.full(shape, 0.25, dtype=dtype, requires_grad=True)
    loss = info_nce(query, positive, temperature=temperature)
    torch.testing.assert_close(loss, info_nce(query, positive, temperature=0.25))
    (grad,) = torch.autograd.grad(loss, temperature)
    assert grad.shape == shape and grad.dtype == dtype


def gradients_of_temperature(tensors: Sequence[Tensor | None], temperature: float) -> list[Tensor]:
    """Ours, the reference and plain PyTorch's, of the sum of the losses."""

    def gradient(function, dtype):
        leaf = torch.tensor(temperature, dtype=torch.float32).to(dtype).requires_grad_()
        given = [t if t is None else t.float().to(dtype) for t in tensors]
        (grad,) = torch.autograd.grad(function(*given, temperature=leaf, reduction="sum"), leaf)
        return grad

    return [
        gradient(info_nce, torch.float32),
        gradient(plain, torch.float64),
        gradient(plain, torch.float32),
    ]


def check_operators(negatives: int | None, dtype: torch.dtype, reduction: str) -> None:
    """By opcheck."""
    tensors = [t if t is None else t.to(dtype) for t in rows((2,), 4, 5, negatives)]
    options = (None, None, None, 0.3, reduction)
    loss, (statistics,) = torch.ops.clsd_fast.info_nce(*tensors, *options, False)
    grad_loss = rand(*loss.shape).to(dtype)
    opcheck(torch.ops.clsd_fast.info_nce_backward, (grad_loss, statistics, *tensors, *options))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    for save_gradients in (False, True) if reduction == "mean" else (False,):
        opcheck(torch.ops.clsd_fast.info_nce, (*leaves, *options, save_gradients))


def mask_and_labels_broadcast_over_heads() -> None:
    mask, labels = random_mask(1, 6, 6), torch.tensor([0, 0, 1, 2, 1, 3])
    check(rows((3,), 6, 8), mask=mask.expand(3, 6, 6), labels=labels.expand(3, 6))
    query, positive, _ = rows((3,), 6, 8)
    options = {"reduction": "none", "mask": mask, "labels": labels}
    torch.testing.assert_close(
        info_nce(query, positive, **options), plain(query, positive, **options)
    )
    # A mask with more heads than the rows.
    torch.testing.assert_close(
        info_nce(query[0], positive[0], reduction="none", mask=random_mask(3, 6, 6)),
        plain(*(t[:1].expand(3, 6, 8) for t in (query, positive)), mask=random_mask(3, 6, 6)),
    )


def all_negatives_excluded_lose_nothing(negatives: int | None) -> None:
    tensors = [t.requires_grad_() for t in rows((2,), 5, 8, negatives) if t is not None]
    loss = info_nce(*tensors, mask=torch.ones(5, 5, dtype=torch.bool), reduction="none")
    assert (loss == 0).all()
    for grad in torch.autograd.grad(loss.sum(), tensors):
        assert (grad == 0).all()


def an_excluded_key_has_no_influence() -> None:
    query, positive, negatives = rows((), 4, 8, 6)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2] = True
    without = info_nce(query, positive, negatives[[0, 1, 3, 4, 5]])
    torch.testing.assert_close(info_nce(query, positive, negatives, mask=mask), without)


def heads_share_a_key(negatives: int | None) -> None:
    def expanded(query, positive, negative):
        negative = None if negative is None else negative.expand(3, 4, 8)
        return plain(query, positive.expand(3, 5, 8), negative)

    compare_draws(
        lambda *t: info_nce(*t, reduction="none"),
        expanded,
        [[rand(3, 5, 8, seed=seed), *rows((), 5, 8, negatives, 1 + seed)[1:]] for seed in range(8)],
        torch.float32,
    )


def logits_of_ten_thousand_do_not_overflow() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    same, opposite = query.detach(), -query.detach()
    for *keys, expected in (
        (same, 0.0),
        (opposite, 1e4),
        (same, opposite, 0.0),
        (opposite, opposite, 1e4),
        (opposite, torch.tensor([[1.0, 1.0]]), 1e4 * (1 + 0.5**0.5)),
    ):
        loss = info_nce(query, *keys, temperature=1e-4)
        (gradient,) = torch.autograd.grad(loss, query)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert gradient.isfinite().all()


def identical_rows() -> None:
    draws = [rand(1, 8, seed=seed).expand(6, 8) for seed in range(8)]
    check_together([[rows, rows, None] for rows in draws])


def lowest_temperature(negatives: int | None) -> None:
    draws = [rows((2,), 16, 32, negatives, seed) for seed in range(8)]
    check_together(draws, temperature=0.01)


def zero_rows_have_no_gradient(negatives: int | None) -> None:
    tensors = [t.float() for t in rows((), 4, 8, negatives) if t is not None]
    for tensor in tensors:
        tensor[1] = 0
        tensor.requires_grad_()
    loss = info_nce(*tensors, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss[1].item() == pytest.approx(math.log(4))  # its four logits are 0
    for tensor in tensors:
        assert (tensor.grad[1] == 0).all() and tensor.grad.isfinite().all()


def one_row_alone_loses_nothing() -> None:
    assert info_nce(rand(1, 8), rand(1, 8, seed=1)).item() == 0


def no_given_negatives_lose_nothing() -> None:
    assert info_nce(rand(3, 8), rand(3, 8, seed=1), rand(0, 8)).item() == 0


def empty(batch: tuple[int, ...], count: int) -> None:
    tensors = [t for t in rows(batch, count, 8) if t is not None]
    loss = info_nce(*(t.requires_grad_() for t in tensors), reduction="none")
    assert loss.shape == (*batch, count)
    grads = torch.autograd.grad(loss.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


PROPERTIES = [
    *cases(mask_and_labels_broadcast_over_heads),
    *cases(all_negatives_excluded_lose_nothing, negatives=[None, 5]),
    *cases(an_excluded_key_has_no_influence),
    *cases(heads_share_a_key, negatives=[None, 4]),
    *cases(logits_of_ten_thousand_do_not_overflow),
    *cases(identical_rows),
    *cases(lowest_temperature, negatives=[None, 9]),
    *cases(zero_rows_have_no_gradient, negatives=[None, 3]),
    *cases(one_row_alone_loses_nothing),
    *cases(no_given_negatives_lose_nothing),
    *cases(empty, batch=[(0,)], count=[4]),
    *cases(empty, batch=[(2,)], count=[0]),
]
