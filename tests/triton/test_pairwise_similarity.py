"""pairwise_similarity's Triton kernels in Triton's interpreter.

Blocks are of 16 (float64, distances), 32 (float32) or 64 (float16) rows and up to 64 features, or
128 of distances.
"""

import pytest
import torch
from support.grids import cover
from support.interpreter import DTYPES, LAYOUTS
from support.pairwise_similarity import METRICS, PROPERTIES, check, check_operators, tables
from support.util import rand

pytestmark = pytest.mark.usefixtures("interpreted_triton")


@cover(metric=METRICS, dtype=DTYPES, layout=LAYOUTS)
def test_dtypes_and_layouts(metric, dtype, layout):
    check(metric, tables(3, 17, 9, 33), dtype, layout)


@cover(metric=METRICS, rows=[1, 4])
def test_one_key_of_one_feature(metric, rows):
    check(metric, tables(8, rows, 1, 1), torch.float32)


@cover(
    quick=2,
    sizes=[("cosine", 35, 33), ("l1", 17, 2), ("dot", 35, 33)],
    features=[8, 129],
)
def test_several_blocks(sizes, features):
    metric, rows, keys = sizes
    check(metric, tables(3, rows, keys, features), torch.float32)


@pytest.mark.thorough
def test_more_rows_than_each_program_finds_the_norms_for():
    check("cosine", tables(2, 130, 2, 70), torch.float32)


@cover(metric=METRICS, dtype=DTYPES)
def test_expanded_gradient(metric, dtype):
    check(metric, [rand(5, 8), rand(4, 8, seed=1)], dtype, expanded_grad=True)


@pytest.mark.thorough
def test_long_rows():
    check("l1", [rand(5, 2500), rand(4, 2500, seed=1)], torch.float32)


@pytest.mark.parametrize("holds", PROPERTIES)
def test_properties(holds):
    holds()


@cover(quick=2, metric=["cosine", "l1", "dot"])
def test_operators(metric):
    check_operators(metric)
