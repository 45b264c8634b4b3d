import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from util import DTYPES, compare, contiguous, rand, sliced

from clsd_fast import info_nce
from clsd_fast.nn import InfoNCELoss


def plain(query, positive, negative=None, temperature=0.07, reduction="none"):
    q, p = F.normalize(query, dim=-1), F.normalize(positive, dim=-1)
    if negative is None:
        logits = q @ p.mT / temperature
        target = torch.arange(q.shape[-2]).expand(logits.shape[:-1])
    else:
        own = (q * p).sum(-1, keepdim=True)
        logits = torch.cat([own, q @ F.normalize(negative, dim=-1).mT], dim=-1) / temperature
        target = torch.zeros(logits.shape[:-1], dtype=torch.long)
    loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    loss = loss.unflatten(0, logits.shape[:-1])
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def rows(batch, count, features, negatives=None):
    tensors = [rand(*batch, count, features), rand(*batch, count, features, seed=1)]
    return [*tensors, None if negatives is None else rand(*batch, negatives, features, seed=2)]


def check(inputs, dtype=torch.float32, layout=contiguous, **options):
    compare(
        lambda *t: info_nce(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        inputs,
        dtype,
        layout,
    )


@pytest.mark.parametrize("negatives", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, sliced])
def test_dtypes_and_layouts(backend, dtype, layout, negatives):
    check(rows((3,), 17, 33, negatives), dtype, layout)


@pytest.mark.parametrize("count", [1, 2, 16, 50])
@pytest.mark.parametrize("negatives", [None, 1, 33])
@pytest.mark.parametrize("features", [1, 8, 129])
def test_sizes(backend, count, negatives, features):
    tensors = rows((8,), count, features, negatives)
    if features == 1:
        # The cosine of numbers has no gradient: what is left is rounding error over |x|. Keep
        # |x| >= 1, or one small x decides the comparison.
        tensors = [t if t is None else t + t.sign() for t in tensors]
    check(tensors)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", [None, 9])
def test_temperatures(backend, temperature, dtype, negatives):
    check(rows((2,), 16, 32, negatives), dtype, temperature=temperature)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend, reduction):
    query, positive, _ = rows((2,), 6, 8)
    options = {"temperature": 0.2, "reduction": reduction}
    expected = plain(query, positive, **options)
    torch.testing.assert_close(info_nce(query, positive, **options), expected)
    torch.testing.assert_close(InfoNCELoss(**options)(query, positive), expected)


@pytest.mark.parametrize("negatives", [None, 4])
def test_heads_share_a_key(backend, negatives):
    query = rand(3, 5, 8)
    _, positive, negative = rows((), 5, 8, negatives)

    def expanded(query, positive, negative):
        negative = None if negative is None else negative.expand(3, 4, 8)
        return plain(query, positive.expand(3, 5, 8), negative)

    compare(
        lambda *t: info_nce(*t, reduction="none"),
        expanded,
        [query, positive, negative],
        torch.float32,
    )


def test_logits_of_ten_thousand_do_not_overflow(backend):
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


def test_identical_rows(backend):
    check([rand(1, 8).expand(6, 8), rand(1, 8).expand(6, 8), None])


@pytest.mark.parametrize("negatives", [None, 3])
def test_zero_rows_have_no_gradient(backend, negatives):
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


def test_one_row_alone_loses_nothing(backend):
    assert info_nce(rand(1, 8), rand(1, 8, seed=1)).item() == 0


def test_no_given_negatives_lose_nothing(backend):
    assert info_nce(rand(3, 8), rand(3, 8, seed=1), rand(0, 8)).item() == 0


@pytest.mark.parametrize("batch, count", [((0,), 4), ((2,), 0)])
def test_empty(backend, batch, count):
    tensors = [t for t in rows(batch, count, 8) if t is not None]
    loss = info_nce(*(t.requires_grad_() for t in tensors), reduction="none")
    assert loss.shape == (*batch, count)
    grads = torch.autograd.grad(loss.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradcheck(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 3, 4, negatives) if t is not None]
    options = {"temperature": 0.3, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *t: info_nce(*t, **options), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", [None, 3])
def test_opcheck(negatives, dtype):
    tensors = [t if t is None else t.to(dtype) for t in rows((2,), 4, 5, negatives)]
    _, maximum, sum_exp = torch.ops.clsd_fast.info_nce(*tensors, 0.3)
    backward = torch.ops.clsd_fast.info_nce_backward
    opcheck(backward, (rand(2, 4).to(dtype), maximum, sum_exp, *tensors, 0.3))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    opcheck(torch.ops.clsd_fast.info_nce, (*leaves, 0.3))
