import pytest
import torch
from support.grids import cover
from support.pairwise_similarity import METRICS, PROPERTIES, check, check_operators, tables
from support.util import DTYPES, contiguous, rand, sliced

from clsd_fast import pairwise_similarity


@cover(
    metric=METRICS,
    dtype=DTYPES,
    layout=[contiguous, sliced],
    sizes=[(17, 9, 33), (1, 1, 16), (33, 16, 5)],
)
def test_dtypes_and_layouts(backend, metric, dtype, layout, sizes):
    check(metric, tables(3, *sizes), dtype, layout)


@cover(metric=METRICS, rows=[1, 2, 16, 17, 50], keys=[1, 16, 33], features=[1, 8, 129])
def test_sizes(backend, metric, rows, keys, features):
    check(metric, tables(8, rows, keys, features), torch.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_long_rows(backend, metric):
    check(metric, [rand(5, 10_000), rand(4, 10_000, seed=1)], torch.float32)


@cover(metric=METRICS, dtype=DTYPES)
def test_expanded_gradient(backend, metric, dtype):
    check(metric, [rand(5, 8), rand(4, 8, seed=1)], dtype, expanded_grad=True)


@pytest.mark.parametrize("holds", PROPERTIES)
def test_properties(backend, holds):
    holds()


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(backend, metric):
    tensors = [t.requires_grad_() for t in tables(2, 3, 5, 4)]
    assert torch.autograd.gradcheck(lambda *t: pairwise_similarity(*t, metric), tensors)


@pytest.mark.parametrize("metric", METRICS)
def test_operators(metric):
    check_operators(metric)
