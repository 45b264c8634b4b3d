import pytest
import torch
from support.util import DTYPES, compare, contiguous, rand, sliced
from torch.library import opcheck

from clsd_fast import distance_ratio_loss
from clsd_fast.nn import DistanceRatioLoss


def plain(anchor, positive, negatives=None, eps=1e-7, reduction="none"):
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


def rows(batch, count, features, negatives=None):
    tensors = [rand(*batch, count, features), rand(*batch, count, features, seed=1)]
    return [*tensors, None if negatives is None else rand(*batch, negatives, features, seed=2)]


def check(inputs, dtype=torch.float32, layout=contiguous, **options):
    compare(
        lambda *t: distance_ratio_loss(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        inputs,
        dtype,
        layout,
    )


@pytest.mark.parametrize("negatives", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, sliced])
def test_dtypes_and_layouts(backend, dtype, layout, negatives):
    check(rows((3,), 7, 33, negatives), dtype, layout)


@pytest.mark.parametrize("count", [2, 16, 19])
@pytest.mark.parametrize("negatives", [None, 1, 33])
@pytest.mark.parametrize("features", [1, 8, 129])
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


def test_heads_share_a_positive(backend):
    compare(
        lambda *t: distance_ratio_loss(*t, reduction="none"),
        lambda anchor, positive: plain(anchor, positive.expand(3, 5, 8)),
        [rand(3, 5, 8), rand(5, 8)],
        torch.float32,
    )


def test_anchor_at_its_positive(backend):
    anchor = rand(4, 8).float().requires_grad_()
    loss = distance_ratio_loss(anchor, anchor.detach())
    loss.backward()
    assert loss.item() == 0
    assert anchor.grad.isfinite().all()


def test_all_rows_identical_are_finite(backend):
    anchor = rand(1, 8).expand(4, 8).clone().requires_grad_()
    loss = distance_ratio_loss(anchor, anchor.detach())
    loss.backward()
    assert loss.item() == 0 and (anchor.grad == 0).all()


@pytest.mark.parametrize("batch, count", [((0,), 4), ((2,), 0)])
def test_empty(backend, batch, count):
    tensors = [t for t in rows(batch, count, 8) if t is not None]
    loss = distance_ratio_loss(*(t.requires_grad_() for t in tensors), reduction="none")
    assert loss.shape == (*batch, count)
    grads = torch.autograd.grad(loss.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradcheck(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 3, 4, negatives) if t is not None]
    options = {"eps": 0.1, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *t: distance_ratio_loss(*t, **options), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", [None, 3])
def test_opcheck(negatives, dtype):
    tensors = [t if t is None else t.to(dtype) for t in rows((2,), 4, 5, negatives)]
    _, own, others = torch.ops.clsd_fast.distance_ratio_loss(*tensors, 0.1)
    backward = torch.ops.clsd_fast.distance_ratio_loss_backward
    opcheck(backward, (rand(2, 4).to(dtype), own, others, *tensors, 0.1))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    opcheck(torch.ops.clsd_fast.distance_ratio_loss, (*leaves, 0.1))
