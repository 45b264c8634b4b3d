import pytest
import torch
from support.distance_ratio_loss import PROPERTIES, check, check_operators, plain, rows
from support.grids import cover
from support.util import DTYPES, contiguous, sliced

from clsd_fast import distance_ratio_loss
from clsd_fast.nn import DistanceRatioLoss


@cover(negatives=[None, 9], dtype=DTYPES, layout=[contiguous, sliced])
def test_dtypes_and_layouts(backend, dtype, layout, negatives):
    check(rows((3,), 7, 33, negatives), dtype, layout)


@cover(count=[2, 16, 19], negatives=[None, 1, 33], features=[1, 8, 129])
def test_sizes(backend, count, negatives, features):
    check(rows((8,), count, features, negatives))


@pytest.mark.parametrize("negatives", [None, 3])
def test_long_rows(backend, negatives):
    check(rows((2,), 7, 10_000, negatives))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend, reduction):
    anchor, positive, _ = rows((2,), 4, 8)
    options = {"eps": 0.5, "reduction": reduction}
    expected = plain(anchor, positive, **options)
    torch.testing.assert_close(distance_ratio_loss(anchor, positive, **options), expected)
    torch.testing.assert_close(DistanceRatioLoss(**options)(anchor, positive), expected)


@pytest.mark.parametrize("holds", PROPERTIES)
def test_properties(backend, holds):
    holds()


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradcheck(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 3, 4, negatives) if t is not None]
    options = {"eps": 0.1, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *t: distance_ratio_loss(*t, **options), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", [None, 3])
def test_operators(negatives, dtype):
    check_operators(negatives, dtype)
