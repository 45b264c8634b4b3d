import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from support.util import (
    DTYPES,
    compare,
    compare_draws,
    compare_stacked,
    contiguous,
    rand,
    run_all,
    sliced,
)
from tolerance import assert_draws_close, largest
from torch.library import opcheck

from clsd_fast import info_nce
from clsd_fast.nn import InfoNCELoss


def plain(
    query, positive, negative=None, temperature=0.07, reduction="none", mask=None, labels=None
):
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


def rows(batch, count, features, negatives=None, seed=0):
    shapes = [(*batch, count, features)] * 2
    shapes.append(None if negatives is None else (*batch, negatives, features))
    return [s if s is None else rand(*s, seed=3 * seed + i) for i, s in enumerate(shapes)]


def check(inputs, dtype=torch.float32, layout=contiguous, **options):
    compare(
        lambda *t: info_nce(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        inputs,
        dtype,
        layout,
    )


def check_together(draws, dtype=torch.float32, **options):
    compare_draws(
        lambda *t: info_nce(*t, **{"reduction": "none", **options}),
        lambda *t: plain(*t, **options),
        draws,
        dtype,
    )


@pytest.mark.parametrize("negatives", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, sliced])
def test_dtypes_and_layouts(backend, dtype, layout, negatives):
    check(rows((3,), 17, 33, negatives), dtype, layout)


COUNTS = (1, 2, 16, 63, 64, 1000)


def check_draws(backend, draws, temperature, reduction):
    def reduced(*tensors):
        loss = plain(*tensors, temperature=temperature)
        return loss if reduction == "none" else getattr(loss, reduction)((-2, -1))

    def function(*tensors):
        return info_nce(*tensors, temperature=temperature, reduction=reduction)

    # Stacked draws are what the reference is fast with, but it would reduce over all of them.
    at_once = backend == "reference" and reduction == "none"
    compare_stacked(function, reduced, draws, torch.float32, at_once)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("negatives", [None, *COUNTS])
@pytest.mark.parametrize("features", [8, 128, 200])
@pytest.mark.parametrize("heads", [1, 3])
def test_sizes(backend, temperature, count, negatives, features, heads):
    keys = count if negatives is None else negatives
    number = min(64, 512 // (heads * count)) // (1 + keys // 200)
    number = max(1 if count == 1000 else 2, number)
    draws = [rows((heads,), count, features, negatives, seed) for seed in range(number)]
    check_draws(backend, draws, temperature, "none")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("count", [1, 2, 16, 63, 300])
@pytest.mark.parametrize("negatives", [None, 1, 64, 1000])
@pytest.mark.parametrize("features", [8, 128])
@pytest.mark.parametrize("heads", [1, 3])
def test_sizes_reduced(backend, reduction, count, negatives, features, heads):
    """Whose gradients the native forward computes."""
    number = 8 if count == 300 else 24  # of losses; 300 rows take as long as all others together
    draws = [rows((heads,), count, features, negatives, seed) for seed in range(number)]
    check_draws(backend, draws, 0.07, reduction)


def test_more_keys_than_the_forward_stores_logits_of(native, monkeypatch):
    """Both ways to the same gradients, for rows, keys, temperature and excluded pairs."""
    module = sys.modules[info_nce.__module__]
    for negatives in (None, 70):
        *tensors, temperature = (*rows((2,), 210, 8, negatives), torch.tensor(0.3))
        leaves = [t.float().requires_grad_() for t in (*tensors, temperature) if t is not None]
        mask = random_mask(210, negatives or 210)
        results = []
        for most in (10**6, 1):
            monkeypatch.setattr(module, "_MOST_CACHED_KEYS", most)
            loss = info_nce(*leaves[:-1], temperature=leaves[-1], mask=mask)
            results.append([loss, *torch.autograd.grad(3 * loss, leaves)])
        for saved, recomputed in zip(*results, strict=True):
            torch.testing.assert_close(saved, recomputed)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("negatives", [None, 1, 63, 1000])
def test_one_feature(backend, temperature, count, negatives):
    """The cosine of numbers is 1 or -1: its gradient is 0 up to rounding over |x|."""
    draws = [rows((3,), count, 1, negatives, seed) for seed in range(10)]
    draws = [[t + t.sign() for t in tensors if t is not None] for tensors in draws]
    options = {"temperature": temperature, "reduction": "none"}
    results = [
        run_all(
            lambda *t: info_nce(*t, **options),
            lambda *t: plain(*t, **options),
            tensors,
            torch.float32,
        )
        for tensors in draws
    ]
    assert_draws_close([[r[0] for r in draw] for draw in results], "output")
    ours, _, theirs = (
        torch.cat([t.flatten() for d in draws for t in d[1:]])
        for draws in zip(*results, strict=True)
    )
    rounding = torch.finfo(torch.float32).eps / temperature
    assert largest(ours) <= 2 * max(largest(theirs), 4 * rounding)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("features", [1, 8, 128, 200])
@pytest.mark.parametrize("negatives", [False, True])
def test_gradient_of_the_temperature(backend, temperature, features, negatives):
    """One number a call, so that errors of all sizes are pooled; each grows with its rows' root."""
    scaled = []
    for count, other, heads in itertools.product(COUNTS, COUNTS if negatives else [None], [1, 3]):
        for seed in range(2 if negatives or count == 1000 else 8):
            tensors = rows((heads,), count, features, other, seed)
            values = gradients_of_temperature(tensors, temperature)
            scaled.append([value / math.sqrt(heads * count) for value in values])
    assert_draws_close(scaled, "gradient of the temperature")


def gradients_of_temperature(tensors, temperature):
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


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", [None, 9])
def test_temperatures(backend, temperature, dtype, negatives):
    check(rows((2,), 16, 32, negatives), dtype, temperature=temperature)


@pytest.mark.parametrize("negatives", [None, 9])
def test_the_lowest_temperature_of_many_draws(backend, negatives):
    draws = [rows((2,), 16, 32, negatives, seed) for seed in range(8)]
    check_together(draws, temperature=0.01)


def random_mask(*shape):
    return rand(*shape, seed=9) > 0


@pytest.mark.parametrize("count", [2, 17, 130])
@pytest.mark.parametrize("negatives", [None, 3, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_mask(backend, count, negatives, dtype, transposed):
    keys = count if negatives is None else negatives
    mask = random_mask(40, keys, count).mT if transposed else random_mask(40, count, keys)
    check(rows((40,), count, 16, negatives), dtype, mask=mask)


@pytest.mark.parametrize("count", [2, 17, 130])
@pytest.mark.parametrize("kinds", [1, 4, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels(backend, count, kinds, dtype):
    labels = (rand(40, count, seed=5) * 1000).long() % kinds
    check(rows((40,), count, 16), dtype, labels=labels)


def test_mask_and_labels_broadcast_over_heads(backend):
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


@pytest.mark.parametrize("negatives", [None, 5])
def test_all_negatives_excluded_lose_nothing(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 5, 8, negatives) if t is not None]
    loss = info_nce(*tensors, mask=torch.ones(5, 5, dtype=torch.bool), reduction="none")
    assert (loss == 0).all()
    for grad in torch.autograd.grad(loss.sum(), tensors):
        assert (grad == 0).all()


def test_an_excluded_key_has_no_influence(backend):
    query, positive, negatives = rows((), 4, 8, 6)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2] = True
    without = info_nce(query, positive, negatives[[0, 1, 3, 4, 5]])
    torch.testing.assert_close(info_nce(query, positive, negatives, mask=mask), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_learned_temperature_keeps_its_dtype_and_shape(backend, dtype, shape):
    query, positive, _ = (t if t is None else t.float() for t in rows((2,), 6, 8))
    temperature = torch.full(shape, 0.25, dtype=dtype, requires_grad=True)
    loss = info_nce(query, positive, temperature=temperature)
    torch.testing.assert_close(loss, info_nce(query, positive, temperature=0.25))
    (grad,) = torch.autograd.grad(loss, temperature)
    assert grad.shape == shape and grad.dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend, reduction):
    query, positive, _ = rows((2,), 6, 8)
    options = {"temperature": 0.2, "reduction": reduction}
    expected = plain(query, positive, **options)
    torch.testing.assert_close(info_nce(query, positive, **options), expected)
    torch.testing.assert_close(InfoNCELoss(**options)(query, positive), expected)


@pytest.mark.parametrize("negatives", [None, 4])
def test_heads_share_a_key(backend, negatives):
    def expanded(query, positive, negative):
        negative = None if negative is None else negative.expand(3, 4, 8)
        return plain(query, positive.expand(3, 5, 8), negative)

    compare_draws(
        lambda *t: info_nce(*t, reduction="none"),
        expanded,
        [[rand(3, 5, 8, seed=seed), *rows((), 5, 8, negatives, 1 + seed)[1:]] for seed in range(8)],
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


def test_identical_rows_of_many_draws(backend):
    draws = [rand(1, 8, seed=seed).expand(6, 8) for seed in range(8)]
    check_together([[rows, rows, None] for rows in draws])


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
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(negatives, dtype, reduction):
    tensors = [t if t is None else t.to(dtype) for t in rows((2,), 4, 5, negatives)]
    options = (None, None, None, 0.3, reduction)
    loss, (statistics,) = torch.ops.clsd_fast.info_nce(*tensors, *options, False)
    grad_loss = rand(*loss.shape).to(dtype)
    opcheck(torch.ops.clsd_fast.info_nce_backward, (grad_loss, statistics, *tensors, *options))
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    for save_gradients in (False, True) if reduction == "mean" else (False,):
        opcheck(torch.ops.clsd_fast.info_nce, (*leaves, *options, save_gradients))
