"""Pixels of images in the tail's kernels.

In kernels, b, y and z are image, row and column of pixels, and n the K * factor**2 numbers of an
output pixel's square, by columns, rows and outputs: ``(j * factor + i) * K + k``. Strides are of an
image, a row and a pixel; channels are dense.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import acc_type, block
from .taps import INNER, find_region, region_pixels


def options_of(x: Tensor, outputs: int, factor: int) -> dict[str, Any]:
    """Options of kernels that multiply pixels with weights."""
    pixels, depth, most = {torch.float64: (16, 16, 16), torch.float32: (32, 32, 32)}.get(
        x.dtype, (128, 64, 64)
    )
    block_n = block(outputs * factor**2, most)
    return {
        "factor": factor,
        "acc_type": acc_type(x),
        "block_m": pixels,
        "block_c": block(x.shape[1], depth),
        "block_n": block_n,
        # With 4, blocks of 128 by 64 spill registers.
        "num_warps": 8 if pixels * block_n >= 8192 else 4,
        # Pixels are read up to 25 times. Pipelined, they would be copied past the L1 cache.
        "num_stages": 1,
    }


def sizes_of(x: Tensor) -> tuple[int, int, int, int]:
    """Images, rows, columns and channels."""
    batch, channels, height, width = x.shape
    return batch, height, width, channels


def strides_of(x: Tensor) -> tuple[int, int, int]:
    """Of images whose channels are dense."""
    return x.stride(0), x.stride(2), x.stride(3)


def blocks_of(x: Tensor, pixels: int, ends: int) -> int:
    """Into how many blocks of so many pixels ``find_region`` cuts all regions."""
    rows, columns = ([1] * min(size, 2 * ends) + [max(size - 2 * ends, 0)] for size in x.shape[2:])
    return sum(triton.cdiv(len(x) * r * c, pixels) for r in rows for c in columns)


def ends_of(factor: int) -> int:
    """How many pixels at each end of an axis have taps of their own."""
    return 2 if INNER.value[factor] else 1


def with_dense_channels(images: Sequence[Tensor]) -> list[Tensor]:
    """Each itself if the channels of a pixel are next to each other, else a copy."""
    layout = torch.channels_last
    return [x if x.stride(1) == 1 else x.contiguous(memory_format=layout) for x in images]


@triton.jit
def pixels_of_block(number, block_m: tl.constexpr, batch, height, width, ends: tl.constexpr):
    """First row and column of the region of block ``number``; image, row and column of its pixels,
    and which of them exist."""
    top, rows, left, columns, number = find_region(number, block_m, batch, height, width, ends)
    index = number * block_m + tl.arange(0, block_m)
    b, y, z = region_pixels(index, top, rows, left, columns)
    return top, left, b, y, z, index < batch * rows * columns


@triton.jit
def pixel_offsets(strides, b, y, z):
    stride_b, stride_y, stride_z = strides
    return b.to(tl.int64) * stride_b + y.to(tl.int64) * stride_y + z.to(tl.int64) * stride_z


@triton.jit
def existing_near(y, z, height, width, exist):
    """Of each pixel that exists, a bit for each of the 5x5 around it that does; 0 of the others."""
    rows, columns = tl.zeros_like(y), tl.zeros_like(z)
    for s in tl.static_range(5):
        rows |= tl.where((y >= 2 - s) & (y < height + 2 - s), 0b11111 << (5 * s), 0)
        columns |= tl.where((z >= 2 - s) & (z < width + 2 - s), 0b0000100001000010000100001 << s, 0)
    return tl.where(exist, rows & columns, 0)


@triton.jit
def load_near(images, pixels, strides, near, down, right, line, width, whole: tl.constexpr):
    """Channels ``line`` of the pixels so far from others, [pixel, c]; 0 where none is."""
    shift = tl.cast(down, tl.int64) * strides[1] + tl.cast(right, tl.int64) * strides[2]
    exist = (((near >> (down * 5 + right + 12)) & 1) != 0)[:, None]
    if not whole:
        exist = exist & (line < width)[None, :]
    return tl.load((images + shift) + (pixels[:, None] + line[None, :]), mask=exist, other=0)


@triton.jit
def square_of(n, outputs, factor: tl.constexpr):
    """Output, row and column of the numbers of a square."""
    place = n // outputs
    return n % outputs, place % factor, place // factor
