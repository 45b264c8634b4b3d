"""info_nce's Triton kernels in Triton's interpreter.

Blocks are of 16 (float64), 32 (float32) or 64 (float16) rows and up to 64 features.
"""

import itertools
import math

import pytest
import torch
from support.grids import cover, defer
from support.info_nce import (
    PROPERTIES,
    check,
    check_labels,
    check_learned_temperature,
    check_mask,
    check_operators,
    check_together,
    gradients_of_temperature,
    random_mask,
    rows,
)
from support.interpreter import DTYPES, LAYOUTS
from tolerance import assert_draws_close

import clsd_fast

pytestmark = pytest.mark.usefixtures("interpreted_triton")


@cover(dtype=DTYPES, layout=LAYOUTS, negatives=[None, 9])
def test_dtypes_and_layouts(dtype, layout, negatives):
    check(rows((3,), 17, 33, negatives), dtype, layout)


# Of float32 at the lowest, the largest error of one draw depends on the host's matrix product: that
# of many draws is among the properties.
@cover(
    temperature=[(1.0, torch.float32), (0.01, torch.float16), (0.01, torch.float64)],
    negatives=[None, 9],
)
def test_temperatures(temperature, negatives):
    temperature, dtype = temperature
    check(rows((2,), 16, 32, negatives), dtype, temperature=temperature)


@cover(
    quick=1, negatives=[None, 70], dtype=[torch.float32, torch.float16], transposed=[False, True]
)
def test_mask(negatives, dtype, transposed):
    check_mask(17, negatives, dtype, transposed, heads=12)


@cover(quick=1, labels=[(4, torch.float32), (1, torch.float16)])
def test_labels(labels):
    check_labels(17, *labels, heads=12)


@cover(dtype=[torch.float32, torch.float64], shape=[(), (1, 1)])
def test_learned_temperature(dtype, shape):
    check_learned_temperature(dtype, shape)


@pytest.mark.parametrize(
    "holds", defer(PROPERTIES, "heads_share_a_key *", "lowest_temperature None")
)
def test_properties(holds):
    holds()


@cover(quick=1, negatives=[3, None])
def test_operators(negatives):
    check_operators(negatives, torch.float32, "none")


@cover(quick=1, sizes=[(35, 8), (35, 70), (1, 8), (2, 8)], negatives=[33, None, 1])
def test_sizes(sizes, negatives):
    """Of fewer rows, more draws: the bound is on the root mean square of all errors."""
    draws = range(max(2, 12 // sizes[0]))
    check_together([rows((3,), *sizes, negatives, seed) for seed in draws], temperature=0.05)


@cover(quick=1, negatives=[2, None])
def test_norms_found_at_once(negatives):
    """By a launch of their own, as for more than 128 rows."""
    check_together([rows((1,), 130, 8, negatives, seed) for seed in range(2)], temperature=1.0)


@cover(quick=1, temperature=[0.01, 1.0], negatives=[None, 35])
def test_gradient_of_the_temperature(temperature, negatives):
    scaled = []
    for count, heads, seed in itertools.product((2, 17), (1, 3), range(3)):
        tensors = rows((heads,), count, 8, negatives, seed)
        values = gradients_of_temperature(tensors, temperature)
        scaled.append([value / math.sqrt(heads * count) for value in values])
    assert_draws_close(scaled, "gradient of the temperature")


VARIANTS = {
    "in batch": {},
    "negatives": {"negatives": 9},
    "mask": {"mask": (128, 128)},
    "labels": {"labels": True},
    "learned temperature": {"learned": True},
    "all": {"mask": (128, 128), "labels": True, "learned": True},
    "negatives, mask, learned temperature": {"negatives": 9, "mask": (128, 9), "learned": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_launches(launches, variant):
    """One forward and two backward for all heads at N <= 128."""
    options = VARIANTS[variant]
    given = rows((3,), 128, 4, options.get("negatives"))
    leaves = [t.float().requires_grad_() for t in given if t is not None]
    temperature = torch.tensor(0.1, requires_grad=True) if "learned" in options else 0.1
    mask = random_mask(3, *options["mask"]) if "mask" in options else None
    labels = torch.arange(128) % 5 if "labels" in options else None
    loss = clsd_fast.info_nce(*leaves, temperature=temperature, mask=mask, labels=labels)
    assert launches == ["info_nce_forward_kernel"]
    loss.backward()
    assert launches[1:] == ["info_nce_query_grad_kernel", "info_nce_key_grad_kernel"]
