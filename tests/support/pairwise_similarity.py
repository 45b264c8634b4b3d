"""pairwise_similarity in plain PyTorch, and what every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from clsd_fast import pairwise_similarity
from support.grids import cases
from support.util import compare, rand

METRICS = ("cosine", "dot", "l1")


def plain(query: Tensor, key: Tensor, metric: str) -> Tensor:
    if metric == "l1":
        return (query.unsqueeze(-2) - key.unsqueeze(-3)).abs().sum(-1)
    if metric == "cosine":
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    return query @ key.mT


def tables(heads: int, rows: int, keys: int, features: int) -> list[Tensor]:
    """query [heads, rows, features] and key [heads, keys, features]."""
    return [rand(heads, rows, features), rand(heads, keys, features, seed=1)]


def check(metric: str, inputs: list[Tensor], *args: object, **kwargs: object) -> None:
    compare(
        lambda *t: pairwise_similarity(*t, metric),
        lambda *t: plain(*t, metric),
        inputs,
        *args,
        **kwargs,
    )


def leading_dimensions_broadcast(metric: str) -> None:
    check(metric, [rand(2, 1, 5, 8), rand(3, 4, 8, seed=1)], torch.float32)


def empty(metric: str, sizes: tuple[int, int, int]) -> None:
    check(metric, tables(*sizes, 8), torch.float32)


def zero_rows_have_no_similarity_and_no_gradient() -> None:
    query, key = rand(3, 5).float(), rand(4, 5, seed=1).float()
    query[1], key[2] = 0, 0
    query.requires_grad_(), key.requires_grad_()
    table = pairwise_similarity(query, key)
    assert (table[1] == 0).all() and (table[:, 2] == 0).all()
    table.sum().backward()
    assert (query.grad[1] == 0).all() and (key.grad[2] == 0).all()
    assert query.grad.isfinite().all() and key.grad.isfinite().all()


def identical_rows() -> None:
    rows = rand(1, 16).expand(5, 16).float()
    torch.testing.assert_close(pairwise_similarity(rows, rows), torch.ones(5, 5))
    leaf = rows.clone().requires_grad_()
    table = pairwise_similarity(leaf, rows, "l1")
    assert (table == 0).all()
    table.sum().backward()
    assert (leaf.grad == 0).all()


PROPERTIES = [
    *cases(leading_dimensions_broadcast, metric=METRICS),
    *cases(empty, metric=METRICS, sizes=[(0, 4, 3), (2, 0, 3), (2, 4, 0), (2, 0, 0)]),
    *cases(zero_rows_have_no_similarity_and_no_gradient),
    *cases(identical_rows),
]


def check_operators(metric: str) -> None:
    """By opcheck."""
    query, key = (t.float() for t in tables(2, 3, 5, 4))
    backward = torch.ops.clsd_fast.pairwise_similarity_backward
    opcheck(backward, (rand(2, 3, 5).float(), query, key, metric))
    tensors = query.requires_grad_(), key.requires_grad_()
    opcheck(torch.ops.clsd_fast.pairwise_similarity, (*tensors, metric))
