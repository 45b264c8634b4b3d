"""pixel_shuffle_upsample's CUDA kernels, emulated."""

import pytest
import torch
from support.emulated import check
from support.util import LAYOUTS, channels_last, rand

DTYPES = (torch.bfloat16, torch.float16)
ALL = (True, True, True)


def check_both(
    emulation,
    batch,
    channels,
    out_channels,
    size,
    factor,
    dtype,
    layout=channels_last,
    needs=ALL,
):
    square, (height, width) = factor**2, size
    tensors = [
        rand(batch, channels, height, width),
        rand(out_channels * square, channels, 3, 3) / (3 * channels**0.5),
        rand(out_channels * square),
        rand(batch, out_channels, height * factor, width * factor, seed=1),
    ]
    x, weight, bias, grad = (layout(t.to(dtype)) for t in tensors)
    op = "pixel_shuffle_upsample"
    check(emulation, op, x, weight, bias, factor)
    check(emulation, op, x, weight, None, factor)
    check(emulation, f"{op}_backward", grad, x, weight, factor, *needs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 17)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("channels, out_channels", [(64, 64), (16, 48)])
def test_factors_and_sizes(emulation, dtype, size, factor, channels, out_channels):
    check_both(emulation, 1, channels, out_channels, size, factor, dtype)


def test_a_whole_image(emulation):
    check_both(emulation, 1, 16, 16, (50, 49), 2, torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    check_both(emulation, 2, 16, 16, (6, 5), 2, torch.bfloat16, layout)


@pytest.mark.parametrize("seed", range(16))
def test_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    check_both(emulation, 1, 32, 48, (5, 6), 2, torch.float16)


def test_empty_batch(emulation):
    check_both(emulation, 0, 16, 16, (6, 5), 2, torch.float16)
