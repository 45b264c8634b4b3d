"""pixel_shuffle_upsample's CUDA kernels, emulated."""

import pytest
import torch
from support.cuda_convolutions import DTYPES, check_pixel_shuffle_upsample
from support.emulated import SEEDS
from support.grids import cover
from support.util import LAYOUTS


@cover(factor=[1, 2, 3], size=[(1, 1), (3, 17)], channels=[(64, 64), (16, 48)], dtype=DTYPES)
def test_factors_and_sizes(emulation, factor, size, channels, dtype):
    check_pixel_shuffle_upsample(emulation, 1, *channels, size, factor, dtype)


def test_a_whole_image(emulation):
    check_pixel_shuffle_upsample(emulation, 1, 16, 16, (50, 49), 2, torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    check_pixel_shuffle_upsample(emulation, 2, 16, 16, (6, 5), 2, torch.bfloat16, layout)


@cover(quick=2, seed=SEEDS)
def test_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    check_pixel_shuffle_upsample(emulation, 1, 32, 48, (5, 6), 2, torch.float16)


def test_empty_batch(emulation):
    check_pixel_shuffle_upsample(emulation, 0, 16, 16, (6, 5), 2, torch.float16)
