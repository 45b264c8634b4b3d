import pytest
import torch
from support.distance_ratio_loss import PROPERTIES, check, check_operators, plain, rows
from support.grids import cover
from support.util import DTYPES, contiguous, rand, sliced

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


@cover(batch=[(), (2,)], count=[1, 5], negatives=[1, 7], reduction=["mean", "none"])
def test_negatives_of_each_anchor(backend, batch, count, negatives, reduction):
    """Each anchor is a batch of its own."""
    anchor, positive, _ = rows(batch, count, 6)
    own = rand(*batch, count, negatives, 6, seed=5).requires_grad_()
    loss = distance_ratio_loss(anchor, positive, own, reduction=reduction)
    expected = plain(anchor.unsqueeze(-2), positive.unsqueeze(-2), own).squeeze(-1)
    expected = expected if reduction == "none" else expected.mean()
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value.sum(), own)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


def test_negatives_of_each_anchor_have_its_row():
    anchor, positive, _ = rows((), 5, 6)
    expected = r"negatives of shape \[..., 5, M, 6\] or \[..., M, 6\], got \[4, 3, 6\]"
    with pytest.raises(ValueError, match=f"distance_ratio_loss: expected {expected}"):
        distance_ratio_loss(anchor, positive, rand(4, 3, 6))


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradcheck(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 3, 4, negatives) if t is not None]
    options = {"eps": 0.1, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *t: distance_ratio_loss(*t, **options), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", [None, 3])
def test_operators(negatives, dtype):
    check_operators(negatives, dtype)
