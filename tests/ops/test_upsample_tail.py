import itertools

import pytest
import torch
from support.grids import NATIVE_FIRST, cover
from support.upsample_tail import (
    EXACT_SHARE,
    SCALES,
    composed,
    differences,
    empty_batch,
    inputs,
    plain,
)
from support.util import DTYPES, LAYOUTS, memory_format, rand, result_names, run_all, sliced
from tolerance import assert_close, assert_draws_close
from torch.library import opcheck

from clsd_fast import reference, use_backend
from clsd_fast._tail_axes import AXES


def check(scale, shape, dtype, *args, **options):
    """The tolerance rule for output and gradients, without the exception for Winograd."""
    functions = [lambda *t, f=f: f(*t, scale=scale) for f in (composed, plain)]
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


@cover(scale=SCALES, bias=[True, False], height=[*range(1, 10), 48])
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
    difference = composed(*tensors, scale=scale) - plain(*tensors, scale=scale)
    assert difference.abs().max() <= EXACT_SHARE


@cover(dtype=DTYPES, layout=LAYOUTS, channels=[3, 16, 48, 64, 65], scale=SCALES)
def test_channels_layouts_dtypes(backend, dtype, layout, channels, scale):
    check(scale, (2, channels, 5, 7), dtype, layout, middle=6)


@cover(
    scale=SCALES,
    size=[(1, 1), (1, 6), (9, 1), (2, 2), (17, 14), (26, 31)],
    layout=LAYOUTS,
    dtype=DTYPES,
)
def test_sizes(backend, scale, size, layout, dtype):
    check(scale, (2, 16, *size), dtype, layout, middle=8)


@cover(outputs=[1, 4, 20], dtype=DTYPES)
def test_other_numbers_of_outputs(backend, outputs, dtype):
    check(2, (2, 16, 4, 9), dtype, outputs=outputs)


@cover(
    quick=3,
    size=[(8, 8), (13, 26), (24, 20), (2, 48)],
    channels=[16, 20, 64],
    outputs=[1, 3, 4],
    layout=LAYOUTS,
)
def test_taps_of_every_pixel_by_winograd(native, size, channels, outputs, layout):
    """x4 in float32, on sizes where tiles are whole, cut by the edge, and many."""
    check(4, (2, channels, *size), torch.float32, layout, middle=channels, outputs=outputs)


@cover(scale=SCALES, dtype=DTYPES)
def test_without_bias(backend, scale, dtype):
    check(scale, (2, 8, 4, 5), dtype, bias=False)


@cover(layout=LAYOUTS, dtype=DTYPES, scale=SCALES)
def test_expanded_gradient(backend, layout, dtype, scale):
    check(scale, (2, 8, 6, 5), dtype, layout, True)


@cover(quick=1, scale=SCALES, dtype=DTYPES[1:])
def test_rounding_at_the_size_of_a_training_step(native, scale, dtype):
    tensors = inputs(scale, 2, 64, 24, 20, middle=64)
    functions = [lambda *t, f=f: f(*t, scale=scale) for f in (composed, plain)]
    results = run_all(*functions, tensors, dtype)
    for result in zip(*results, result_names(tensors), strict=True):
        assert_close(*result)


@pytest.mark.parametrize("scale", SCALES)
def test_empty_batch(backend, scale):
    empty_batch(scale)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_keeps_the_memory_format(backend, layout):
    x, *parameters = inputs(2, 2, 4, 5, 7)
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(composed(layout(x), *parameters, scale=2)) == expected


@NATIVE_FIRST
@cover(scale=SCALES, size=[(1, 1), (2, 3), (4, 3)])
def test_gradcheck(backend, scale, size):
    tensors = [t.requires_grad_() for t in inputs(scale, 1, 2, *size, outputs=1)]
    fast = scale == 4  # 324 output pixels
    function = lambda *t: composed(*t, scale=scale)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, fast_mode=fast)


@cover(quick=1, layout=LAYOUTS, scale=SCALES)
def test_opcheck(layout, scale):
    x, *ups, out_weight, out_bias = (
        layout(t.float()).detach().requires_grad_() for t in inputs(scale, 2, 5, 3, 4)
    )
    stages = [*ups, None, None][:4]
    opcheck(torch.ops.clsd_fast.upsample_tail, (x, *stages, out_weight, out_bias, scale))
    weight = torch.ops.clsd_fast.upsample_tail(x, *stages, out_weight, out_bias, scale)[1]
    taps = AXES[scale][0].size
    assert weight.shape == (6, taps, taps, 3)
    grad = layout(rand(2, 3, 3 * scale, 4 * scale).float())
    saved = [t if t is None else t.detach() for t in (x, weight, *stages, out_weight)]
    for needs in ((True, True), (False, True), (True, False)):
        opcheck(torch.ops.clsd_fast.upsample_tail_backward, (grad, *saved, scale, *needs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", [reference, torch.ops.clsd_fast])
def test_gradients_that_no_one_needs_are_empty(backward, layout):
    x, weight, bias, out_weight, _ = (layout(t) for t in inputs(2, 2, 5, 3, 4))
    saved = (x, rand(6, 10, 10, 3), weight, bias, None, None, out_weight)
    grad_output = layout(rand(2, 3, 6, 8))
    grads = backward.upsample_tail_backward(grad_output, *saved, 2, False, False)
    assert [grad.shape for grad in grads] == [(0,)] * 7


@pytest.mark.parametrize("scale", SCALES)
def test_native_weight_is_that_of_the_reference(native, scale):
    x, *ups, out_weight, out_bias = inputs(scale, 1, 5, 3, 4)
    stages = [*ups, None, None][:4]
    operator = torch.ops.clsd_fast.upsample_tail
    weight = operator(x, *stages, out_weight, out_bias, scale)[1]
    expected = reference.upsample_tail(x, *stages, out_weight, out_bias, scale)[1]
    assert_close(weight, expected, expected, "composed weight")


def test_the_reference_is_the_same_map(native):
    tensors = inputs(4, 2, 16, 6, 7)
    ours = composed(*tensors, scale=4)
    with use_backend("reference"):
        torch.testing.assert_close(ours, composed(*tensors, scale=4), rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["operator", "reference"])
def test_shifted_outputs_are_not_rounded(implementation, dtype):
    """To 16 bits, of which bfloat16's tell values above 128 apart by whole steps."""
    functions = {"operator": torch.ops.clsd_fast.upsample_tails}
    functions["reference"] = reference.upsample_tails
    x, weight, bias, out_weight, out_bias = inputs(2, 1, 16, 5, 7)
    lists = [[x.to(dtype)], *([t.float()] for t in (weight, bias)), [], []]
    lists += [[out_weight.float()], [out_bias.float()]]
    shift = torch.eye(3).view(3, 3, 1, 1), torch.full((3,), 200.0)
    (plain_output,), _ = functions[implementation](*lists, None, None, 2)
    (shifted,), _ = functions[implementation](*lists, *shift, 2)
    assert (plain_output.dtype, shifted.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(shifted - 200, plain_output.float(), rtol=2**-8, atol=1e-4)
