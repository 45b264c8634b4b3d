import pytest
import torch
import torch.nn.functional as F
from support.util import DTYPES, compare, contiguous, rand, sliced
from torch.library import opcheck

from clsd_fast import pairwise_similarity

METRICS = ("cosine", "dot", "l1")


def plain(query, key, metric):
    if metric == "l1":
        return (query.unsqueeze(-2) - key.unsqueeze(-3)).abs().sum(-1)
    if metric == "cosine":
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    return query @ key.mT


def check(metric, inputs, *args, **kwargs):
    compare(
        lambda *t: pairwise_similarity(*t, metric),
        lambda *t: plain(*t, metric),
        inputs,
        *args,
        **kwargs,
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, sliced])
@pytest.mark.parametrize("rows, keys, features", [(17, 9, 33), (1, 1, 16), (33, 16, 5)])
def test_dtypes_and_layouts(backend, metric, dtype, layout, rows, keys, features):
    check(metric, [rand(3, rows, features), rand(3, keys, features, seed=1)], dtype, layout)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 50])
@pytest.mark.parametrize("keys", [1, 16, 33])
@pytest.mark.parametrize("features", [1, 8, 129])
def test_sizes(backend, metric, rows, keys, features):
    check(metric, [rand(8, rows, features), rand(8, keys, features, seed=1)], torch.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_long_rows(backend, metric):
    check(metric, [rand(5, 10_000), rand(4, 10_000, seed=1)], torch.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_leading_dimensions_broadcast(backend, metric):
    check(metric, [rand(2, 1, 5, 8), rand(3, 4, 8, seed=1)], torch.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_gradient(backend, metric, dtype):
    check(metric, [rand(5, 8), rand(4, 8, seed=1)], dtype, expanded_grad=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch, rows, keys", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (2, 0, 0)])
def test_empty(backend, metric, batch, rows, keys):
    check(metric, [rand(batch, rows, 8), rand(batch, keys, 8)], torch.float32)


def test_zero_rows_have_no_similarity_and_no_gradient(backend):
    query, key = rand(3, 5).float(), rand(4, 5, seed=1).float()
    query[1], key[2] = 0, 0
    query.requires_grad_(), key.requires_grad_()
    table = pairwise_similarity(query, key)
    assert (table[1] == 0).all() and (table[:, 2] == 0).all()
    table.sum().backward()
    assert (query.grad[1] == 0).all() and (key.grad[2] == 0).all()
    assert query.grad.isfinite().all() and key.grad.isfinite().all()


def test_identical_rows(backend):
    rows = rand(1, 16).expand(5, 16).float()
    torch.testing.assert_close(pairwise_similarity(rows, rows), torch.ones(5, 5))
    leaf = rows.clone().requires_grad_()
    table = pairwise_similarity(leaf, rows, "l1")
    assert (table == 0).all()
    table.sum().backward()
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(backend, metric):
    tensors = [rand(2, 3, 4).requires_grad_(), rand(2, 5, 4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *t: pairwise_similarity(*t, metric), tensors)


@pytest.mark.parametrize("metric", METRICS)
def test_opcheck(metric):
    query, key = rand(2, 3, 4).float(), rand(2, 5, 4, seed=1).float()
    backward = torch.ops.clsd_fast.pairwise_similarity_backward
    opcheck(backward, (rand(2, 3, 5).float(), query, key, metric))
    tensors = query.requires_grad_(), key.requires_grad_()
    opcheck(torch.ops.clsd_fast.pairwise_similarity, (*tensors, metric))
