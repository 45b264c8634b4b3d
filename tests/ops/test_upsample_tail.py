import itertools

import pytest
import torch
import torch.nn.functional as F
from support.util import (
    DTYPES,
    LAYOUTS,
    leaves,
    memory_format,
    rand,
    result_names,
    run,
    run_all,
    sliced,
)
from tolerance import assert_close, assert_draws_close
from torch.library import opcheck

from clsd_fast import reference, upsample_tail, use_backend
from clsd_fast._tail_axes import AXES, STAGES

SCALES = (2, 3, 4)
#: As the issue of a collapsed tail must hold; the share of the largest element.
EXACT_SHARE = 1e-12


def arguments(tensors, scale):
    """The flat tensors x, weight and bias of each stage and of the end, as the function's."""
    x, *ups, out_weight, out_bias = tensors
    return x, ups[::2], ups[1::2], out_weight, out_bias, scale


def plain(*tensors, scale):
    x, weights, biases, out_weight, out_bias, _ = arguments(tensors, scale)
    for stage, weight, bias in zip(STAGES[scale], weights, biases, strict=True):
        x = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), stage)
    return F.conv2d(x, out_weight, out_bias, padding=1)


def collapsed(*tensors, scale):
    return upsample_tail(*arguments(tensors, scale))


def inputs(scale, batch, channels, height, width, bias=True, middle=None, outputs=3, seed=0):
    """x, weight and bias of each stage, weight and bias of the last convolution."""
    tensors, count = [rand(batch, channels, height, width, seed=seed)], channels
    for number, stage in enumerate(STAGES[scale], start=seed):
        features = (middle or channels) + number  # so that no two sizes are the same by chance
        weight = rand(features * stage**2, count, 3, 3, seed=number)
        tensors += [weight / (3 * count**0.5), rand(len(weight), seed=seed) if bias else None]
        count = features
    out_weight = rand(outputs, count, 3, 3, seed=seed) / (3 * count**0.5)
    return [*tensors, out_weight, rand(outputs, seed=seed) if bias else None]


def check(scale, shape, dtype, *args, **options):
    """The tolerance rule for output and gradients, without the exception for Winograd."""
    functions = [lambda *t, f=f: f(*t, scale=scale) for f in (collapsed, plain)]
    seeds = range(8 if dtype == torch.float32 else 1)
    results = []
    for seed in seeds:
        tensors = inputs(scale, *shape, **options, seed=seed)
        results.append(run_all(*functions, tensors, dtype, *args, grad_seed=seed + 7))
    for index, name in enumerate(result_names(tensors)):
        result = [[r[index] for r in draw] for draw in results]
        if dtype == torch.float32:
            assert_draws_close(result, name)
        else:
            assert_close(*result[0], name)


def differences(scale, tensors):
    """Of output and gradients from the plain tail's, as shares of the largest element."""
    grad = rand(*plain(*tensors, scale=scale).shape, seed=3).to(tensors[0])
    ours, theirs = (
        run(lambda *t, f=f: f(*t, scale=scale), leaves(tensors, torch.float64, lambda t: t), grad)
        for f in (collapsed, plain)
    )
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("height", [*range(1, 10), 48])
def test_exact_everywhere_in_float64(backend, scale, bias, height):
    for width in (*range(1, 10), 48):
        shares = differences(scale, inputs(scale, 1, 3, height, width, bias))
        assert max(shares) <= EXACT_SHARE, f"{height}x{width}: {shares}"


@pytest.mark.parametrize("scale", SCALES)
def test_exact_at_the_size_of_edsr(backend, scale):
    shares = differences(scale, inputs(scale, 1, 64, 6, 5, middle=64))
    assert max(shares) <= EXACT_SHARE, shares


@pytest.mark.parametrize("scale", SCALES)
def test_each_pixel_reaches_what_it_does_in_the_plain_tail(backend, scale):
    _, *parameters = inputs(scale, 1, 1, 1, 1, middle=2)
    x = torch.eye(35, dtype=torch.float64).view(35, 1, 5, 7)  # one image for each of 5x7 pixels
    tensors = [x, *parameters]
    difference = collapsed(*tensors, scale=scale) - plain(*tensors, scale=scale)
    assert difference.abs().max() <= EXACT_SHARE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 16, 48, 64, 65])
@pytest.mark.parametrize("scale", SCALES)
def test_channels_layouts_dtypes(backend, dtype, layout, channels, scale):
    check(scale, (2, channels, 5, 7), dtype, layout, middle=6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 1), (2, 2), (17, 14), (26, 31)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", SCALES)
def test_sizes(backend, scale, size, layout, dtype):
    check(scale, (2, 16, *size), dtype, layout, middle=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 4, 20])
def test_other_numbers_of_outputs(backend, outputs, dtype):
    check(2, (2, 16, 4, 9), dtype, outputs=outputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_without_bias(backend, scale, dtype):
    check(scale, (2, 8, 4, 5), dtype, bias=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", SCALES)
def test_expanded_gradient(backend, layout, dtype, scale):
    check(scale, (2, 8, 6, 5), dtype, layout, True)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_rounding_at_the_size_of_a_training_step(native, scale, dtype):
    tensors = inputs(scale, 2, 64, 24, 20, middle=64)
    functions = [lambda *t, f=f: f(*t, scale=scale) for f in (collapsed, plain)]
    results = run_all(*functions, tensors, dtype)
    for result in zip(*results, result_names(tensors), strict=True):
        assert_close(*result)


@pytest.mark.parametrize("scale", SCALES)
def test_empty_batch(backend, scale):
    tensors = [t.requires_grad_() for t in inputs(scale, 0, 8, 4, 4)]
    output = collapsed(*tensors, scale=scale)
    assert output.shape == (0, 3, 4 * scale, 4 * scale)
    for tensor, grad in zip(tensors, torch.autograd.grad(output.sum(), tensors), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_keeps_the_memory_format(backend, layout):
    x, *parameters = inputs(2, 2, 4, 5, 7)
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(collapsed(layout(x), *parameters, scale=2)) == expected


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 3)], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_gradcheck(backend, scale, size):
    tensors = [t.requires_grad_() for t in inputs(scale, 1, 2, *size, outputs=1)]
    fast = scale == 4  # 324 output pixels
    function = lambda *t: collapsed(*t, scale=scale)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, fast_mode=fast)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", SCALES)
def test_opcheck(layout, scale):
    x, *ups, out_weight, out_bias = (
        layout(t.float()).detach().requires_grad_() for t in inputs(scale, 2, 5, 3, 4)
    )
    stages = [*ups, None, None][:4]
    opcheck(torch.ops.clsd_fast.upsample_tail, (x, *stages, out_weight, out_bias, scale))
    kernel = torch.ops.clsd_fast.upsample_tail(x, *stages, out_weight, out_bias, scale)[1]
    taps = AXES[scale][0].size
    assert kernel.shape == (6, taps, taps, 3)
    grad = layout(rand(2, 3, 3 * scale, 4 * scale).float())
    saved = [t if t is None else t.detach() for t in (x, kernel, *stages, out_weight)]
    for needs in ((True, True), (False, True), (True, False)):
        opcheck(torch.ops.clsd_fast.upsample_tail_backward, (grad, *saved, scale, *needs))


@pytest.mark.parametrize("scale", SCALES)
def test_native_kernel_is_that_of_the_reference(native, scale):
    x, *ups, out_weight, out_bias = inputs(scale, 1, 5, 3, 4)
    stages = [*ups, None, None][:4]
    operator = torch.ops.clsd_fast.upsample_tail
    kernel = operator(x, *stages, out_weight, out_bias, scale)[1]
    expected = reference.upsample_tail(x, *stages, out_weight, out_bias, scale)[1]
    assert_close(kernel, expected, expected, "kernel")


def test_the_reference_is_the_same_map(native):
    tensors = inputs(4, 2, 16, 6, 7)
    ours = collapsed(*tensors, scale=4)
    with use_backend("reference"):
        torch.testing.assert_close(ours, collapsed(*tensors, scale=4), rtol=1e-12, atol=1e-12)


def test_taps_are_those_of_the_derivation():
    for scale, taps, padding, edges in ((2, 8, 3, [1]), (3, 11, 4, [1]), (4, 18, 7, [3, 1])):
        axis = AXES[scale][0]
        assert axis.segments[0].length == taps and axis.padding == padding
        assert (taps - 2 * padding) == scale  # so that the output has scale times the pixels
        assert [s.length for s in axis.segments[1::2]] == edges
        assert [s.length for s in axis.segments[2::2]] == edges


def test_paths_beyond_both_ends_do_not_exist():
    for axes, (row_size, column_size) in itertools.product(AXES.values(), ((1, 2), (2, 1))):
        for segment in axes[0].segments:
            if segment.edge is not None and segment.exists(row_size):
                assert segment.length <= axes[0].upscale * min(row_size, column_size)
