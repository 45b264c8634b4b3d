"""The Triton kernels on CPU tensors, in Triton's interpreter, by the tests of the other backends.

Sizes are small: the interpreter takes milliseconds a program. It computes garbage in bfloat16.
"""

import inspect
import itertools
import math
from functools import partial

import pytest
import test_compile as compiled
import test_distance_ratio_loss as ratio
import test_info_nce as info
import test_library as library
import test_pairwise_similarity as pairwise
import torch
from support.calls import BACKWARDS, FORWARDS, ROWS
from support.util import compare_draws, contiguous, rand, sliced
from tolerance import assert_close, assert_draws_close
from torch.utils._pytree import tree_leaves

import clsd_fast
from clsd_fast import reference
from clsd_fast.backend import triton as triton_backend

pytestmark = pytest.mark.usefixtures("interpreted_triton")
FLOATS = (torch.float64, torch.float32, torch.float16)
LAYOUTS = (contiguous, sliced)


def cases(test, **values):
    """Another file's test with every combination of values, on the backend in use."""
    fixtures = {name: "triton" for name in ("backend", "native") if name in names(test)}
    for combination in itertools.product(*values.values()):
        arguments = dict(zip(values, combination, strict=True))
        words = [getattr(value, "__name__", str(value)) for value in combination]
        yield pytest.param(
            partial(test, **fixtures, **arguments), id=" ".join([test.__name__, *words])
        )


def names(test):
    return inspect.signature(test).parameters


# Blocks are of 16 (float64, distances), 32 (float32) or 64 (float16) rows and up to 64 features,
# or 128 of distances.
PAIRWISE = [
    *cases(
        pairwise.test_dtypes_and_layouts,
        metric=pairwise.METRICS,
        dtype=FLOATS,
        layout=LAYOUTS,
        rows=[17],
        keys=[9],
        features=[33],
    ),
    *cases(pairwise.test_sizes, metric=pairwise.METRICS, rows=[1, 4], keys=[1], features=[1]),
    *cases(pairwise.test_sizes, metric=["cosine", "dot"], rows=[35], keys=[33], features=[8, 129]),
    *cases(pairwise.test_sizes, metric=["l1"], rows=[17], keys=[2], features=[8, 129]),
    # More rows than each program finds the norms for.
    *cases(pairwise.test_sizes, metric=["cosine"], rows=[130], keys=[2], features=[70]),
    *cases(pairwise.test_expanded_gradient, metric=pairwise.METRICS, dtype=FLOATS),
    *cases(pairwise.test_leading_dimensions_broadcast, metric=pairwise.METRICS),
    *cases(pairwise.test_long_rows, metric=["l1"]),
    *cases(pairwise.test_empty, metric=pairwise.METRICS, batch=[0, 2], rows=[0, 4], keys=[0, 3]),
    *cases(pairwise.test_zero_rows_have_no_similarity_and_no_gradient),
    *cases(pairwise.test_identical_rows),
    *cases(pairwise.test_opcheck, metric=pairwise.METRICS),
]
INFO_NCE = [
    *cases(info.test_dtypes_and_layouts, dtype=FLOATS, layout=LAYOUTS, negatives=[None, 9]),
    *cases(info.test_temperatures, temperature=[1.0], dtype=FLOATS, negatives=[None, 9]),
    # Of float32, the largest error of one draw depends on the host's matrix product.
    *cases(
        info.test_temperatures,
        temperature=[0.01],
        dtype=[torch.float64, torch.float16],
        negatives=[None, 9],
    ),
    *cases(info.test_temperatures, temperature=[0.01], dtype=[torch.float32], negatives=[None]),
    *cases(info.test_the_lowest_temperature_of_many_draws, negatives=[None, 9]),
    # Of 40 heads: every pair of values, not every combination.
    *cases(info.test_mask, count=[17], negatives=[None], dtype=[torch.float32], transposed=[False]),
    *cases(info.test_mask, count=[17], negatives=[None], dtype=[torch.float16], transposed=[True]),
    *cases(info.test_mask, count=[17], negatives=[70], dtype=[torch.float32], transposed=[True]),
    *cases(info.test_mask, count=[17], negatives=[70], dtype=[torch.float16], transposed=[False]),
    *cases(info.test_labels, count=[17], kinds=[1], dtype=[torch.float16]),
    *cases(info.test_labels, count=[17], kinds=[4], dtype=[torch.float32]),
    *cases(info.test_mask_and_labels_broadcast_over_heads),
    *cases(info.test_all_negatives_excluded_lose_nothing, negatives=[None, 5]),
    *cases(info.test_an_excluded_key_has_no_influence),
    *cases(
        info.test_learned_temperature_keeps_its_dtype_and_shape,
        dtype=[torch.float32, torch.float64],
        shape=[(), (1, 1)],
    ),
    *cases(info.test_heads_share_a_key, negatives=[None, 4]),
    *cases(info.test_logits_of_ten_thousand_do_not_overflow),
    *cases(info.test_identical_rows_of_many_draws),
    *cases(info.test_zero_rows_have_no_gradient, negatives=[None, 3]),
    *cases(info.test_one_row_alone_loses_nothing),
    *cases(info.test_no_given_negatives_lose_nothing),
    *cases(info.test_empty, batch=[(0,)], count=[4]),
    *cases(info.test_empty, batch=[(2,)], count=[0]),
    *cases(info.test_opcheck, negatives=[None, 3], dtype=[torch.float32], reduction=["none"]),
]
DISTANCE_RATIO = [
    *cases(ratio.test_dtypes_and_layouts, dtype=FLOATS, layout=LAYOUTS, negatives=[None, 9]),
    *cases(ratio.test_sizes, count=[2, 19], negatives=[None, 9], features=[1, 129]),
    *cases(ratio.test_long_rows, negatives=[3]),
    *cases(ratio.test_heads_share_a_positive),
    *cases(ratio.test_anchor_at_its_positive),
    *cases(ratio.test_all_rows_identical_are_finite),
    *cases(ratio.test_empty, batch=[(0,)], count=[4]),
    *cases(ratio.test_empty, batch=[(2,)], count=[0]),
    *cases(ratio.test_opcheck, negatives=[None, 3], dtype=[torch.float32]),
]
EVERY_OPERATOR = [
    *cases(library.test_no_uninitialised_memory_is_read, name=ROWS, dtype=[torch.float32]),
    *cases(library.test_one_input_alone_gets_its_gradient, name=ROWS),
    *cases(library.test_double_backward_raises, name=ROWS),
    *cases(library.test_offsets_beyond_32_bits, name=ROWS),
    *cases(compiled.check, name=ROWS, compiler=["aot_eager"]),
]


@pytest.mark.parametrize("case", PAIRWISE)
def test_pairwise_similarity(case):
    case()


@pytest.mark.parametrize("case", INFO_NCE)
def test_info_nce(case):
    case()


@pytest.mark.parametrize("case", DISTANCE_RATIO)
def test_distance_ratio_loss(case):
    case()


@pytest.mark.parametrize("case", EVERY_OPERATOR)
def test_every_operator(case):
    case()


CALLS = [
    (op, values)
    for op, values in FORWARDS + BACKWARDS
    if op.removesuffix("_backward") in set(triton_backend.OPERATORS) - {"upsample_tail"}
    and values[-1] is not True  # save_gradients, which the CPU's kernel alone has
]


@pytest.mark.parametrize("op, values", CALLS, ids=library.operator_ids(CALLS))
def test_operators_equal_the_reference(op, values):
    ours = getattr(torch.ops.clsd_fast, op)(*values)
    expected = getattr(reference, op)(*values)
    for a, b in zip(*map(tree_leaves, (ours, expected)), strict=True):
        assert_close(a, b, b, op)


def check_draws(heads, count, features, negatives, **options):
    """Of fewer rows, more draws: the bound is on the root mean square of all errors."""
    draws, options = max(2, 24 // count), {"reduction": "none", **options}
    compare_draws(
        lambda *t: clsd_fast.info_nce(*t, **options),
        lambda *t: info.plain(*t, **options),
        [info.rows((heads,), count, features, negatives, seed) for seed in range(draws)],
        torch.float32,
    )


@pytest.mark.parametrize("count, features", [(1, 8), (2, 8), (35, 8), (35, 129)])
@pytest.mark.parametrize("negatives", [None, 1, 33])
def test_info_nce_sizes(count, negatives, features):
    check_draws(3, count, features, negatives, temperature=0.05)


@pytest.mark.parametrize("negatives", [None, 2])
def test_info_nce_with_norms_found_at_once(negatives):
    """By a launch of their own, as for more than 128 rows."""
    check_draws(1, 130, 8, negatives, temperature=1.0)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("negatives", [None, 35])
def test_gradient_of_the_temperature(temperature, negatives):
    scaled = []
    for count, heads, seed in itertools.product((2, 17), (1, 3), range(6)):
        tensors = info.rows((heads,), count, 8, negatives, seed)
        values = info.gradients_of_temperature(tensors, temperature)
        scaled.append([value / math.sqrt(heads * count) for value in values])
    assert_draws_close(scaled, "gradient of the temperature")


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels as they are launched."""
    from clsd_fast.triton import _launch, _rows, distance_ratio_loss, info_nce, pairwise_similarity

    launch, names = _launch.launch, []

    def counted(kernel, *args, **options):
        names.append(kernel.fn.__name__)
        launch(kernel, *args, **options)

    for module in (_rows, distance_ratio_loss, info_nce, pairwise_similarity):
        monkeypatch.setattr(module, "launch", counted)
    return names


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
def test_info_nce_launches(launches, variant):
    """One forward and two backward for all heads at N <= 128."""
    options = VARIANTS[variant]
    rows = info.rows((3,), 128, 4, options.get("negatives"))
    leaves = [t.float().requires_grad_() for t in rows if t is not None]
    temperature = torch.tensor(0.1, requires_grad=True) if "learned" in options else 0.1
    mask = info.random_mask(3, *options["mask"]) if "mask" in options else None
    labels = torch.arange(128) % 5 if "labels" in options else None
    loss = clsd_fast.info_nce(*leaves, temperature=temperature, mask=mask, labels=labels)
    assert launches == ["info_nce_forward_kernel"]
    loss.backward()
    assert launches[1:] == ["info_nce_query_grad_kernel", "info_nce_key_grad_kernel"]


def test_launches_of_the_others(launches):
    query, key = (t.float().requires_grad_() for t in (rand(3, 17, 8), rand(3, 9, 8)))
    for metric, kernel in (("cosine", "similarity"), ("dot", "similarity"), ("l1", "l1")):
        clsd_fast.pairwise_similarity(query, key, metric).sum().backward()
        assert launches == [f"pairwise_{kernel}_{k}_kernel" for k in ("forward", "grad", "grad")]
        launches.clear()
    for negatives in (None, 4):
        tensors = [
            t.float().requires_grad_()
            for t in ratio.rows((3,), 5, 2000, negatives)
            if t is not None
        ]
        loss = clsd_fast.distance_ratio_loss(*tensors)
        assert [name.split("_")[3] for name in launches] == ["forward", "finish"]
        loss.backward()
        assert [name.split("_")[3] for name in launches[2:]] == ["anchor", "others"]
        launches.clear()
