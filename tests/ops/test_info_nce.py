import math
import sys

import pytest
import torch
from support.grids import cover, pairs
from support.info_nce import (
    PROPERTIES,
    check,
    check_labels,
    check_learned_temperature,
    check_mask,
    check_operators,
    gradients_of_temperature,
    plain,
    random_mask,
    rows,
)
from support.util import DTYPES, compare_stacked, contiguous, rand, run_all, sliced
from tolerance import assert_draws_close, largest

from clsd_fast import info_nce
from clsd_fast.nn import InfoNCELoss


@cover(dtype=DTYPES, layout=[contiguous, sliced], negatives=[None, 9])
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


@cover(
    temperature=[0.01, 1.0],
    count=COUNTS,
    negatives=[None, *COUNTS],
    features=[8, 128, 200],
    heads=[1, 3],
)
def test_sizes(backend, temperature, count, negatives, features, heads):
    keys = count if negatives is None else negatives
    number = min(64, 512 // (heads * count)) // (1 + keys // 200)
    number = max(1 if count == 1000 else 2, number)
    draws = [rows((heads,), count, features, negatives, seed) for seed in range(number)]
    check_draws(backend, draws, temperature, "none")


@cover(
    reduction=["mean", "sum"],
    count=[1, 2, 16, 63, 300],
    negatives=[None, 1, 64, 1000],
    features=[8, 128],
    heads=[1, 3],
)
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


@cover(temperature=[0.01, 1.0], count=COUNTS, negatives=[None, 1, 63, 1000])
def test_one_feature(backend, temperature, count, negatives):
    """The cosine of numbers is 1 or -1: its gradient is 0 up to rounding over |x|."""
    number = 3 if count == 1000 else 10
    draws = [rows((3,), count, 1, negatives, seed) for seed in range(number)]
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


@cover(quick=2, temperature=[0.01, 1.0, 0.07], features=[1, 8, 128, 200], negatives=[False, True])
def test_gradient_of_the_temperature(backend, temperature, features, negatives):
    """One number a call, so that errors of all sizes are pooled; each grows with its rows' root."""
    scaled = []
    others = COUNTS if negatives else [None]
    for count, other, heads in pairs(count=COUNTS, other=others, heads=[1, 3])[0]:
        for seed in range(2 if negatives or count == 1000 else 8):
            tensors = rows((heads,), count, features, other, seed)
            values = gradients_of_temperature(tensors, temperature)
            scaled.append([value / math.sqrt(heads * count) for value in values])
    assert_draws_close(scaled, "gradient of the temperature")


@cover(temperature=[0.01, 0.07, 0.5, 1.0], dtype=DTYPES, negatives=[None, 9])
def test_temperatures(backend, temperature, dtype, negatives):
    check(rows((2,), 16, 32, negatives), dtype, temperature=temperature)


@cover(count=[2, 17, 130], negatives=[None, 3, 200], dtype=DTYPES, transposed=[False, True])
def test_mask(backend, count, negatives, dtype, transposed):
    check_mask(count, negatives, dtype, transposed)


@cover(count=[2, 17, 130], kinds=[1, 4, 200], dtype=DTYPES)
def test_labels(backend, count, kinds, dtype):
    check_labels(count, kinds, dtype)


@cover(dtype=[torch.float32, torch.bfloat16, torch.float64], shape=[(), (1,), (1, 1)])
def test_learned_temperature(backend, dtype, shape):
    check_learned_temperature(dtype, shape)


@pytest.mark.parametrize("holds", PROPERTIES)
def test_properties(backend, holds):
    holds()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend, reduction):
    query, positive, _ = rows((2,), 6, 8)
    options = {"temperature": 0.2, "reduction": reduction}
    expected = plain(query, positive, **options)
    torch.testing.assert_close(info_nce(query, positive, **options), expected)
    torch.testing.assert_close(InfoNCELoss(**options)(query, positive), expected)


def test_identical_rows(backend):
    check([rand(1, 8).expand(6, 8), rand(1, 8).expand(6, 8), None])


@cover(batch=[(), (2,)], count=[0, 1, 5], negatives=[0, 1, 7], reduction=["mean", "none"])
def test_negatives_of_each_query(backend, batch, count, negatives, reduction):
    """Each query is a batch of its own."""
    query, positive, _ = rows(batch, count, 6)
    own = rand(*batch, count, negatives, 6, seed=5)
    mask = random_mask(*batch, count, negatives)
    for options in ({}, {"mask": mask}):
        losses = info_nce(query, positive, own, reduction=reduction, **options)
        alone = [t.unsqueeze(-2) for t in (query, positive)]
        options = {name: value.unsqueeze(-2) for name, value in options.items()}
        expected = plain(*alone, own, reduction="none", **options).squeeze(-1)
        torch.testing.assert_close(losses, expected if reduction == "none" else expected.mean(),
                                   equal_nan=count == 0)  # fmt: skip


def test_gradients_of_negatives_of_each_query(backend):
    tensors = [rand(*s, seed=i) for i, s in enumerate([(3, 4), (3, 4), (3, 5, 4)])]
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: info_nce(*t, temperature=0.3), leaves)


def test_negatives_of_each_query_have_its_row():
    query, positive, _ = rows((), 5, 6)
    expected = r"negative_keys of shape \[..., 5, M, 6\] or \[..., M, 6\], got \[4, 3, 6\]"
    with pytest.raises(ValueError, match=f"info_nce: expected {expected}"):
        info_nce(query, positive, rand(4, 3, 6))
    own = rand(5, 3, 6)
    with pytest.raises(ValueError, match="expected no labels beside negative_keys, got both"):
        info_nce(query, positive, own, labels=torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected mask of shape \[..., 5, 3\], got \[5, 5\]"):
        info_nce(query, positive, own, mask=random_mask(5, 5))
    with pytest.raises(ValueError, match="no group beside negative_keys of each query, got both"):
        info_nce(query, positive, own, group=object())


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradcheck(backend, negatives):
    tensors = [t.requires_grad_() for t in rows((2,), 3, 4, negatives) if t is not None]
    options = {"temperature": 0.3, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *t: info_nce(*t, **options), tensors)


@cover(negatives=[None, 3], dtype=[torch.float32, torch.bfloat16], reduction=["none", "mean"])
def test_operators(negatives, dtype, reduction):
    check_operators(negatives, dtype, reduction)
