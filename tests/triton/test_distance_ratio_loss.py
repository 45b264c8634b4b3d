"""distance_ratio_loss's Triton kernels in Triton's interpreter."""

import pytest
import torch
from support.distance_ratio_loss import PROPERTIES, check, check_operators, rows
from support.grids import cover
from support.interpreter import DTYPES, LAYOUTS

pytestmark = pytest.mark.usefixtures("interpreted_triton")


@cover(dtype=DTYPES, layout=LAYOUTS, negatives=[None, 9])
def test_dtypes_and_layouts(dtype, layout, negatives):
    check(rows((3,), 7, 33, negatives), dtype, layout)


@cover(count=[2, 19], negatives=[None, 9], features=[1, 129])
def test_sizes(count, negatives, features):
    check(rows((3,), count, features, negatives))


@pytest.mark.thorough
def test_long_rows():
    check(rows((2,), 7, 2500, 3))


@pytest.mark.parametrize("holds", PROPERTIES)
def test_properties(holds):
    holds()


@cover(quick=1, negatives=[3, None])
def test_operators(negatives):
    check_operators(negatives, torch.float32)
