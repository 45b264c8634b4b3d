import pytest
import torch
import torch.nn.functional as F
from support.grids import cover
from support.util import DTYPES, LAYOUTS, compare, memory_format, rand, sliced
from torch.library import opcheck

from clsd_fast import pixel_shuffle_upsample


def plain(x, weight, bias, upscale_factor):
    return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), upscale_factor)


def inputs(batch, channels, out_channels, upscale_factor, height, width, bias=True):
    features = out_channels * upscale_factor**2
    return [
        rand(batch, channels, height, width),
        rand(features, channels, 3, 3) / (3 * channels**0.5),
        rand(features) if bias else None,
    ]


def check(upscale_factor, tensors, *args, **kwargs):
    compare(
        lambda *t: pixel_shuffle_upsample(*t, upscale_factor),
        lambda *t: plain(*t, upscale_factor),
        tensors,
        *args,
        **kwargs,
    )


@cover(dtype=DTYPES, layout=LAYOUTS, channels=[3, 16, 48, 64, 65])
def test_channels_layouts_dtypes(backend, dtype, layout, channels):
    check(2, inputs(2, channels, channels, 2, 5, 7), dtype, layout)


@cover(
    upscale_factor=[1, 2, 3, 4],
    size=[(1, 1), (1, 6), (9, 1), (17, 14)],
    layout=LAYOUTS,
    dtype=DTYPES,
)
def test_factors_and_sizes(backend, upscale_factor, size, layout, dtype):
    check(upscale_factor, inputs(2, 16, 6, upscale_factor, *size), dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_bias(backend, dtype):
    check(3, inputs(2, 8, 4, 3, 4, 5, bias=False), dtype)


@cover(layout=LAYOUTS, dtype=DTYPES)
def test_expanded_gradient(backend, layout, dtype):
    check(2, inputs(2, 8, 8, 2, 6, 5), dtype, layout, expanded_grad=True)


def test_empty_batch(backend):
    # PyTorch's own pixel_shuffle has no gradient here, so there is nothing to compare with.
    tensors = [t.requires_grad_() for t in inputs(0, 8, 8, 2, 4, 4)]
    output = pixel_shuffle_upsample(*tensors, 2)
    assert output.shape == (0, 8, 8, 8)
    for tensor, grad in zip(tensors, torch.autograd.grad(output.sum(), tensors), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_keeps_the_memory_format(backend, layout):
    x, *parameters = inputs(2, 4, 3, 2, 5, 7)
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(pixel_shuffle_upsample(layout(x), *parameters, 2)) == expected


def test_gradcheck(backend):
    tensors = [t.requires_grad_() for t in inputs(2, 3, 2, 2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *t: pixel_shuffle_upsample(*t, 2), tensors)


@cover(quick=1, layout=LAYOUTS)
def test_opcheck(layout):
    tensors = [layout(t.float()).detach() for t in inputs(2, 5, 3, 2, 3, 4)]
    opcheck(torch.ops.clsd_fast.pixel_shuffle_upsample, (*[t.requires_grad_() for t in tensors], 2))
    x, weight, _ = (t.detach() for t in tensors)
    grad = layout(rand(2, 3, 6, 8).float())
    for needs in ((True, True, True), (False, False, True)):
        opcheck(torch.ops.clsd_fast.pixel_shuffle_upsample_backward, (grad, x, weight, 2, *needs))
