"""The convolutions' Triton kernels in Triton's interpreter.

The interpreter takes milliseconds a program, however large its blocks: most tests enlarge them.
"""

import pytest
import torch
import torch.nn.functional as F
from support.calls import BACKWARDS, EPILOGUES, FORWARDS, IMAGES
from support.every_operator import (
    check_against_the_reference,
    compiles_as_one_graph,
    double_backward_raises,
    no_uninitialised_memory_is_read,
    offsets_beyond_32_bits,
    one_input_alone_gets_its_gradient,
    operator_ids,
)
from support.grids import cases, cover, defer
from support.util import channels_last, compare, contiguous, rand, sliced
from tolerance import assert_close

import clsd_fast
from clsd_fast import reference
from clsd_fast.backend import triton as triton_backend

pytestmark = pytest.mark.usefixtures("interpreted_triton")
OPERATORS = triton_backend.CONVOLUTIONS
NAMES = [name for name in IMAGES if name in OPERATORS]
CALLS = [
    (op, values) for op, values in FORWARDS + BACKWARDS if op.removesuffix("_backward") in OPERATORS
]
#: Rows and columns of pixels, channels of inputs and outputs, warps, stages.
SMALL, LARGE = (4, 4, 16, 16, 4, 1), (8, 8, 32, 32, 4, 1)


@pytest.fixture(autouse=True)
def long_sums(monkeypatch, interpreted_triton):
    """Kernels without matrix products have few programs."""
    from clsd_fast.triton.conv import gradients, packing

    monkeypatch.setattr(packing, "BLOCK", 2**14)
    monkeypatch.setattr(gradients, "BLOCK_E", 2**13)
    monkeypatch.setattr(gradients, "PROGRAMS", 6)
    monkeypatch.setattr(gradients, "BIAS_PROGRAMS", 2)


def set_blocks(monkeypatch, sizes):
    from clsd_fast.triton.conv import table

    for of_kernel in (table.CONVOLVE, table.WEIGHT_GRADIENT):
        for arithmetic in of_kernel["others"]:
            monkeypatch.setitem(of_kernel["others"], arithmetic, sizes)


@pytest.fixture
def large_blocks(monkeypatch):
    set_blocks(monkeypatch, LARGE)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several of everything, also of tiny images."""
    set_blocks(monkeypatch, SMALL)


def quick_ones(calls):
    """Each operator's first call; those of chains take seconds."""
    first = {op: values for op, values in reversed(calls)}
    return [
        pytest.param(
            op,
            values,
            id=name,
            marks=[]
            if values is first[op] and not op.startswith("residual_block_")
            else pytest.mark.thorough,
        )
        for (op, values), name in zip(calls, operator_ids(calls), strict=True)
    ]


@pytest.mark.parametrize("op, values", quick_ones(CALLS))
def test_operators_equal_the_reference(large_blocks, op, values):
    check_against_the_reference(op, values)


@pytest.mark.parametrize(
    "holds",
    defer(
        [
            *cases(no_uninitialised_memory_is_read, name=NAMES, dtype=[torch.float32]),
            *cases(one_input_alone_gets_its_gradient, name=NAMES),
            *cases(double_backward_raises, name=NAMES),
            *cases(offsets_beyond_32_bits, name=NAMES),
            *cases(compiles_as_one_graph, name=NAMES, compiler=["aot_eager"]),
        ],
        "*residual_block*",
        "one_input*",
        "double_backward_raises p*",
        "*uninit* p*",
        "compiles_as_one_graph p*",
    ),
)
def test_properties(large_blocks, holds):
    holds()


def operands(channels, outputs, height, width, batch=2):
    """x, weight, bias and a residual."""
    return [
        rand(batch, channels, height, width),
        rand(outputs, channels, 3, 3) / (3 * channels**0.5),
        rand(outputs),
        rand(batch, outputs, height, width, seed=1),
    ]


def conv3x3(relu, res_scale):
    def ours(x, weight, bias, residual):
        return clsd_fast.conv3x3(x, weight, bias, relu=relu, residual=residual, res_scale=res_scale)

    def plain(x, weight, bias, residual):
        return reference.conv3x3(x, weight, bias, residual, res_scale, relu)

    return ours, plain


@cover(quick=2, epilogue=EPILOGUES, dtype=[torch.float32, torch.float16])
def test_epilogues(large_blocks, epilogue, dtype):
    has_bias, has_residual, relu, res_scale = epilogue
    x, weight, bias, residual = operands(5, 7, 3, 5, batch=1)
    tensors = [x, weight, bias if has_bias else None, residual if has_residual else None]
    compare(*conv3x3(relu, res_scale), tensors, dtype)


@cover(
    quick=2,
    channels=[(17, 18), (3, 17), (33, 3)],
    size=[(5, 6), (1, 1), (3, 4)],
    dtype=[torch.float32, torch.float16],
    layout=[sliced, channels_last, contiguous],
)
def test_blocks_and_borders(small_blocks, channels, size, dtype, layout):
    """Several blocks of channels and of pixels, in part beyond the images."""
    compare(*conv3x3(True, 0.5), operands(*channels, *size), dtype, layout)


@cover(
    quick=1,
    factor=[2, 3],
    size=[(3, 5), (2, 1)],
    dtype=[torch.float16, torch.float32],
    layout=[channels_last, contiguous],
)
def test_pixel_shuffles(small_blocks, factor, size, dtype, layout):
    """Whose phases have more channels than a block, and not whole blocks."""
    x, weight, bias, _ = operands(5, 9 * factor**2, *size, batch=1)

    def ours(x, weight, bias):
        return clsd_fast.pixel_shuffle_upsample(x, weight, bias, factor)

    def plain(x, weight, bias):
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), factor)

    compare(ours, plain, [x, weight, bias], dtype, layout)


@cover(quick=1, dtype=[torch.float16, torch.float32], layout=[channels_last, contiguous])
def test_residual_block(large_blocks, dtype, layout):
    x, weight, bias, _ = operands(5, 18, 4, 5)
    back = rand(5, 18, 3, 3) / 12

    def plain(x, weight, bias, back, last):
        hidden = F.relu(F.conv2d(x, weight, bias, padding=1))
        return x + 0.5 * F.conv2d(hidden, back, last, padding=1)

    def ours(*tensors):
        return clsd_fast.residual_block(*tensors, res_scale=0.5)

    compare(ours, plain, [x, weight, bias, back, rand(5)], dtype, layout)


@cover(quick=1, shape=["all", "each"], dtype=[torch.float32, torch.float64, torch.float16])
def test_slopes(large_blocks, shape, dtype):
    """Of negative results: one for all, or each channel's own, rounded once."""
    from clsd_fast.triton.conv3x3 import conv3x3

    x, weight, bias, residual = (t.to(dtype) for t in operands(5, 7, 3, 5))
    slopes = (rand(7) if shape == "each" else torch.tensor(-0.3)).to(dtype)
    arguments = (0.0, slopes) if shape == "each" else (slopes.item(),)
    ours = conv3x3(x, weight, bias, residual, 0.5, True, *arguments)

    def plain(*tensors):
        *images, slopes = tensors
        return F.prelu(reference.conv3x3(*images, 0.5, False), slopes.expand(7))

    tensors = (x, weight, bias, residual, slopes)
    exact = plain(*(t.double() for t in tensors))
    assert_close(ours, exact, plain(*tensors), "slopes")


@cover(quick=1, name=sorted(set(NAMES) - {"residual_blocks"}), layout=[channels_last, contiguous])
def test_float32_parameters(large_blocks, name, layout):
    """Of 16-bit images: the gradients are float32, too."""
    function, make = IMAGES[name]
    images = {0, 3} if name == "conv3x3" else {0}
    tensors = [t.half() if i in images else t.half().float() for i, t in enumerate(make())]

    def results(dtype, tensors):
        leaves = [layout(t.to(dtype or t.dtype)).requires_grad_() for t in tensors]
        output = function(*leaves)
        grad = rand(*output.shape, seed=7).half().to(output.dtype)
        return [output, *torch.autograd.grad(output, leaves, grad)]

    ours = results(None, tensors)
    assert [t.dtype for t in ours[1:]] == [t.dtype for t in tensors]
    with clsd_fast.use_backend("reference"):
        exact, theirs = results(torch.float64, tensors), results(torch.float16, tensors)
    for number, (a, b, c) in enumerate(zip(ours, exact, theirs, strict=True)):
        assert_close(a, b, c.to(a.dtype), f"result {number}")


def test_branches_are_what_they_are_alone(large_blocks):
    """Also more than a launch takes, whose parameters lie in memory each in its own way."""
    count = 9
    tensors = [operands(3, 4, 3, 4, batch=1) for _ in range(count)]
    xs, weights, biases, grads = ([t.float() for t in of] for of in zip(*tensors, strict=True))
    grads = [(i + 1) * grad for i, grad in enumerate(grads)]
    weights = [(i - 4) * (channels_last(w) if i % 3 else w) for i, w in enumerate(weights)]
    residual = rand(1, 4, 3, 4, seed=2).float()
    ours = torch.ops.clsd_fast.conv3x3s(xs, weights, biases, residual)
    found = torch.ops.clsd_fast.conv3x3s_backward(grads, xs, weights, True, True, True)
    for i in (3, 8):
        alone = (xs[i], weights[i], biases[i], residual, 1.0, False)
        assert torch.equal(ours[i], torch.ops.clsd_fast.conv3x3(*alone))
        needs = (True, True, True)
        grad = torch.ops.clsd_fast.conv3x3_backward(grads[i], xs[i], weights[i], 1.0, *needs)
        for of_all, of_one in zip(found, grad, strict=False):
            torch.testing.assert_close(of_all[i], of_one)
    torch.testing.assert_close(found[3], torch.stack(grads).sum(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_values_that_are_not_finite(large_blocks, value):
    """Reach the pixels around them, through ReLU and masks as in PyTorch."""
    x, weight, bias, residual = (t.float() for t in operands(3, 4, 5, 6))
    x[0, 1, 2, 2] = value
    back = rand(3, 4, 3, 3).float()
    for op, arguments in (
        ("conv3x3", (x, weight, bias, residual, 0.5, True)),
        ("conv3x3_backward", (residual, x, weight, 0.5, False, True, True)),
        ("residual_block_backward", (x, x, residual * value, weight, back, 0.5, True, False)),
    ):
        ours = getattr(torch.ops.clsd_fast, op)(*arguments)
        expected = getattr(reference, op)(*arguments)
        for a, b in zip(*([t] if torch.is_tensor(t) else t for t in (ours, expected)), strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), op
            torch.testing.assert_close(a[a.isfinite()], b[b.isfinite()], msg=op)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_formats_are_those_of_the_fakes(launches, op, layout):
    calls = [call for call in CALLS if call[0].removesuffix("_backward") == op]

    def results(name, values, device):
        given = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: layout(t).to(device), values
        )
        found = getattr(torch.ops.clsd_fast, name)(*given)
        leaves = torch.utils._pytree.tree_leaves(found)
        return [(t.shape, t.stride(), t.dtype) for t in leaves]

    for name, values in calls:
        assert results(name, values, "cpu") == results(name, values, "meta"), name
    assert launches


def test_launches(launches):
    """However many blocks and chains: one that packs, two a block, and four for the gradients of
    the first and of the second convolutions' parameters."""
    chains = [[torch.ones(2, 4, 5, 6) for _ in range(2)]]
    for channels, outputs in ((4, 4), (4, 4)):
        chains += [[torch.ones(outputs, channels, 3, 3) for _ in range(6)]]
        chains += [[torch.ones(outputs) for _ in range(6)]]
    ops = torch.ops.clsd_fast
    maps, hiddens = ops.residual_blocks(*chains, 1.0, [1, 2, 3], True)
    assert launches == 2 * ["conv3x3_pack_kernel"] + 6 * ["conv3x3_kernel"]
    launches.clear()
    xs, weights1, _, weights2, _ = chains
    saved = (xs, maps[:-2], hiddens, weights1, weights2, 1.0)
    ops.residual_blocks_backward(maps[-2:], [3], *saved, True, True)
    sums = [f"conv3x3_{name}_kernel" for name in ("weight_grad", "sum", "bias_grad", "sum")]
    assert launches == 2 * ["conv3x3_pack_kernel"] + 6 * ["conv3x3_kernel"] + 2 * sums
    launches.clear()
    ops.residual_blocks_backward(maps[-2:], [3], *saved, False, True)
    assert launches.count("conv3x3_kernel") == 5


@pytest.mark.parametrize("dtype, needs", [(torch.float32, True), (torch.float16, False)])
def test_empty_batches(large_blocks, dtype, needs):
    x, weight, bias, grad = (t.to(dtype) for t in operands(3, 4, 5, 6, batch=0))
    assert torch.ops.clsd_fast.conv3x3(x, weight, bias, grad, 1.0, True).shape == grad.shape
    grads = torch.ops.clsd_fast.conv3x3_backward(grad, x, weight, 1.0, True, needs, True)
    assert grads[0].shape == x.shape
    assert not any(t.count_nonzero() for t in grads[1:])
    assert grads[1].shape == (weight.shape if needs else (0,))


@pytest.mark.parametrize("channels, outputs", [(2, 1), (1, 2)])
def test_rows_that_are_too_long(launches, channels, outputs):
    x = torch.empty(1).expand(1, channels, 1, 2**26 + 1)
    weight, grad = (
        torch.ones(outputs, channels, 3, 3),
        torch.empty(1).expand(1, outputs, 1, 2**26 + 1),
    )
    message = "conv3x3: expected at most 134217728 numbers in a row of pixels .*, got 134217730"
    ops = torch.ops.clsd_fast
    with pytest.raises(RuntimeError, match=message):
        ops.conv3x3(x, weight, None, None, 1.0, False)
    with pytest.raises(RuntimeError, match=message):
        ops.conv3x3_backward(grad, x, weight, 1.0, False, True, False)
