"""The composed tail's Triton kernels in Triton's interpreter.

The interpreter takes 10 ms a program, however large its blocks: most tests enlarge them.
"""

import pytest
import torch
from support import upsample_tail as tail
from support.calls import BACKWARDS, FORWARDS
from support.every_operator import check_against_the_reference, operator_ids
from support.grids import cover
from support.util import channels_last, contiguous, rand, result_names, run_all, sliced
from tolerance import assert_draws_close

import clsd_fast
from clsd_fast.backend import native as native_backend

pytestmark = pytest.mark.usefixtures("interpreted_triton")
#: But for those without gradients of parameters, which are two of the others' launches.
CALLS = [
    (op, values)
    for op, values in FORWARDS + BACKWARDS
    if op.startswith("upsample_tail") and values[-1] is not False
]


@pytest.fixture
def modules(interpreted_triton):
    from clsd_fast.triton import upsample_tails
    from clsd_fast.triton.tail import compose, compose_gradients, gradients

    return upsample_tails, compose, gradients, compose_gradients


@pytest.fixture
def long_sums(monkeypatch, modules):
    """Kernels without matrix products have few programs."""
    _, compose, gradients, compose_gradients = modules
    for module in (compose, compose_gradients):
        monkeypatch.setattr(module, "BLOCK", 2**15)
    monkeypatch.setattr(gradients, "BLOCK_E", 2**13)


@pytest.fixture
def large_blocks(monkeypatch, modules, long_sums):
    """Those with products have no more than one block of channels and of outputs."""
    operator, composition, *_ = modules
    apply_options, compose_options = operator.options_of, composition._options

    def operator_options(x, outputs, factor):
        block_n = {2: 16, 3: 32, 4: 64}[factor]
        return apply_options(x, outputs, factor) | {"block_m": 64, "block_n": block_n}

    def composition_options(like, factor):
        return compose_options(like, factor) | {"block_n": 512 if factor == 4 else 32}

    monkeypatch.setattr(operator, "options_of", operator_options)
    monkeypatch.setattr(composition, "_options", composition_options)


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.thorough
@pytest.mark.parametrize("op, values", CALLS, ids=operator_ids(CALLS))
def test_operators_equal_the_reference(large_blocks, poisoned, op, values):
    check_against_the_reference(op, values)


@pytest.mark.parametrize(
    "scale, size, bias",
    [(2, (1, 1), True), pytest.param(3, (2, 2), False, marks=pytest.mark.thorough)],
)
def test_exact_everywhere(large_blocks, poisoned, scale, size, bias):
    """And of any strides."""
    tensors = [t if t is None else sliced(t) for t in tail.inputs(scale, 2, 3, *size, bias)]
    assert max(tail.differences(scale, tensors)) <= tail.EXACT_SHARE


@pytest.mark.thorough
def test_several_blocks_of_channels_and_outputs(long_sums, poisoned):
    """In blocks of 16, as in float64."""
    tensors = tail.inputs(2, 1, 17, 1, 1, middle=16, outputs=5)
    assert max(tail.differences(2, tensors)) <= tail.EXACT_SHARE


@pytest.mark.parametrize(
    "size, dtype, layout",
    [
        pytest.param(
            (17, 21), torch.float32, channels_last, id="17x21 float32", marks=pytest.mark.thorough
        ),
        pytest.param((1, 1), torch.float16, contiguous, id="1x1 float16"),
    ],
)
def test_dtypes(large_blocks, monkeypatch, modules, size, dtype, layout):
    """Also several blocks and chunks of pixels."""
    monkeypatch.setattr(modules[2], "PROGRAMS", 50)
    tensors = tail.inputs(2, 1, 8, *size)
    functions = [lambda *t, f=f: f(*t, scale=2) for f in (tail.composed, tail.plain)]
    results = run_all(*functions, tensors, dtype, layout)
    for *result, name in zip(*results, result_names(tensors), strict=True):
        assert_draws_close([result], name)


def tensor_sizes(scale):
    x, *ups, out_weight, out_bias = (t.float() for t in tail.inputs(scale, 2, 5, 3, 4))
    return x, [*ups, None, None][:4], out_weight, out_bias


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("scale", tail.SCALES)
def test_formats_are_those_of_the_fakes(launches, scale, layout):
    x, stages, out_weight, out_bias = tensor_sizes(scale)
    x, out_weight, *stages = (t if t is None else layout(t) for t in (x, out_weight, *stages))

    def results(device):
        def to(*tensors):
            return [t if t is None else t.to(device) for t in tensors]

        ours = torch.ops.clsd_fast.upsample_tail(*to(x, *stages, out_weight, out_bias), scale)
        saved = to(ours[0], x, ours[1], *stages, out_weight)
        grads = torch.ops.clsd_fast.upsample_tail_backward(*saved, scale, True, True)
        return [(t.shape, t.stride(), t.dtype) for t in (*ours, *grads)]

    assert results("cpu") == results("meta")
    assert launches


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("scale, forward, backward", [(2, 3, 8), (3, 3, 8), (4, 5, 14)])
def test_launches(launches, scale, forward, backward, count):
    """However many tails there are."""
    x, stages, out_weight, out_bias = tensor_sizes(scale)
    tensors = (x, *stages, out_weight, out_bias)
    lists = [[] if t is None else [t] * count for t in tensors]
    ops = torch.ops.clsd_fast
    outputs, composed = ops.upsample_tails(*lists, None, None, scale)
    assert len(launches) == forward
    saved = (outputs, lists[0], composed, *lists[1:6], None, scale)
    ops.upsample_tails_backward(*saved, True, True)
    assert len(launches) == forward + backward
    launches.clear()
    ops.upsample_tails_backward(*saved, True, False)
    assert launches == ["tail_lay_out_kernel", "tail_images_grad_kernel"]


def lists_of(tails):
    """The lists of the operator from the flat tensors of each tail."""
    return [
        [] if tensors[0] is None else list(tensors)
        for tensors in zip(*(padded(tail) for tail in tails), strict=True)
    ]


def padded(tensors):
    """x, weight and bias of two stages, of which the second may be None, and of the end."""
    x, *ups, out_weight, out_bias = tensors
    return x, *[*ups, None, None][:4], out_weight, out_bias


@cover(
    quick=2,
    scale=tail.SCALES,
    count=[1, 2, 4],
    size=[(3, 2), (1, 1), (4, 5), (2, 7)],
    dtype=[torch.float32, torch.float16],
    shifted=[True, False],
)
def test_lists(large_blocks, scale, count, size, dtype, shifted):
    """Of tails that are alike, but for the last one's channels between stages and its layout."""
    shift = (rand(3, 3, 1, 1), rand(3)) if shifted else (None, None)

    def results(first, of_images, of_parameters):
        tails = [
            tail.inputs(scale, 1, 5, *size, middle=5 + (number == 3), seed=number)
            for number in range(first, first + count)
        ]
        xs, *lists = lists_of(tails)
        xs = [t.to(dtype).to(of_images) for t in xs]
        xs[-1] = channels_last(xs[-1])
        lists = [[t.float().to(of_parameters) for t in tensors] for tensors in lists]
        constants = [None if t is None else t.float().to(of_parameters) for t in shift]
        outputs, composed = torch.ops.clsd_fast.upsample_tails(xs, *lists, *constants, scale)
        grads = [
            rand(*t.shape, seed=9 + i).to(dtype).to(t) for i, t in enumerate(outputs, start=first)
        ]
        saved = (grads, xs, composed, *lists[:5], constants[0], scale, True, True)
        return [outputs, composed, *torch.ops.clsd_fast.upsample_tails_backward(*saved)]

    found = []
    for first in range(0, 4, count):
        ours = results(first, dtype, torch.float32)
        with clsd_fast.use_backend("reference"):
            exact = results(first, torch.float64, torch.float64)
            theirs = results(first, dtype, torch.float32)
        found.append(
            [list(zip(*kind, strict=True)) for kind in zip(ours, exact, theirs, strict=True)]
        )
    for number, parts in enumerate(zip(*found, strict=True)):
        draws = [draw for part in parts for draw in part]
        assert len(draws) == 4
        if draws[0][0].numel() > 0:  # not of a stage that there is not
            assert_draws_close(draws, f"result {number}")


def test_models_compose_where_there_is_a_kernel(launches, monkeypatch):
    """The student's tail and the head's together, as on a GPU: other operators are plain PyTorch
    there."""
    monkeypatch.setattr(native_backend, "devices", frozenset())
    for collapse in (None, False):
        student = clsd_fast.EDSR(2, num_blocks=2, channels=4, collapse=collapse)
        model = clsd_fast.CLSD(student, taps=(1,), head_blocks=1, contrast="feature_ratio")
        with clsd_fast.use_backend("auto"):
            model(torch.rand(2, 3, 5, 4), torch.rand(2, 3, 10, 8))
        assert launches.count("tail_forward_kernel") == (1 if collapse is None else 0)
        launches.clear()


def test_too_many_pixels(launches):
    x = torch.empty(1).expand(2**20 + 1, 1, 2**5, 2**5)
    weight, out_weight = torch.ones(4, 1, 3, 3), torch.ones(3, 1, 3, 3)
    message = "upsample_tail: expected at most 1073741824 pixels for .*, got 1073742848"
    with pytest.raises(RuntimeError, match=message):
        clsd_fast.upsample_tail(x, [weight], [None], out_weight, None, 2)


@pytest.mark.thorough
def test_empty_batch(large_blocks):
    tail.empty_batch(2)


@pytest.mark.thorough
def test_offsets_beyond_32_bits(large_blocks):
    """Images whose channels are dense are read where they are."""
    x, *parameters = (t.float() for t in tail.inputs(2, 2, 2, 1, 1))
    expected = tail.composed(x, *parameters, scale=2)
    memory = torch.empty(2**31 + 2)
    apart = memory.as_strided(x.shape, (2**31, 1, 2, 2)).copy_(x)
    assert torch.equal(tail.composed(apart, *parameters, scale=2), expected)
