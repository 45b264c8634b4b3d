"""What the Triton kernels share: launching, block sizes, and reading and writing rows.

In kernels, n, m and d are numbers of rows, of other rows and of features, b is the index into the
batch (int64), and i, j and f are blocks of indices. Rows are a tuple (pointer, stride of the batch,
of the row, of the feature), as :func:`strided` makes it. What lies outside of them reads as 0.
"""

from contextlib import nullcontext
from typing import Any, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Programs that keep a large GPU busy; fewer tiles than that are split along the features,
PROGRAMS = 1024
#: into slices of no fewer than this.
LEAST_SLICE = 1024


def launch(kernel: triton.JITFunction, programs: int, *args: Any, **options: object) -> None:
    """Run a one-dimensional grid on the device of the first rows; nothing if it is empty."""
    if programs == 0:
        return
    device = args[0][0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **options)


@overload
def strided(x: Tensor) -> tuple: ...


@overload
def strided(x: Tensor | None) -> tuple | None: ...


def strided(x: Tensor | None) -> tuple | None:
    """x and its strides as one argument of a kernel."""
    return None if x is None else (x, *x.stride())


def accumulator_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_statistic(x: Tensor, *shape: int) -> Tensor:
    """Uninitialized, in the accumulator's dtype."""
    return x.new_empty(shape, dtype=accumulator_dtype(x))


def acc_type(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def block(size: int, most: int) -> int:
    """The least power of two that holds size, within [16, most]; 16 is the least of ``tl.dot``."""
    return min(most, max(16, triton.next_power_of_2(size)))


def product_options(x: Tensor, rows: int, columns: int) -> dict[str, Any]:
    """Options of a kernel that multiplies rows with other rows (columns of the products)."""
    most, depth = {torch.float64: (16, 16), torch.float32: (32, 32)}.get(x.dtype, (64, 64))
    block_n, block_m = block(rows, most), block(columns, most)
    return {
        "acc_type": acc_type(x),
        "block_n": block_n,
        "block_m": block_m,
        "block_d": block(x.shape[2], depth),
        # With 4, tiles of 64 by 64 spill registers.
        "num_warps": 8 if block_n * block_m >= 2048 else 4,
    }


def gradient_options(x: Tensor, rows: int, columns: int) -> dict[str, Any]:
    """The same and the features of a gradient that a program holds, which may be all of them."""
    block_f = block(x.shape[2], {torch.float64: 16, torch.float32: 64}.get(x.dtype, 128))
    whole = x.shape[2] <= block_f
    return product_options(x, rows, columns) | {"block_f": block_f, "whole": whole}


def difference_options(x: Tensor) -> dict[str, Any]:
    """Options of a kernel that subtracts rows of one tile from one row after another."""
    return {"acc_type": acc_type(x), "block_n": 16, "block_f": block(x.shape[2], 128)}


def split_features(tiles: int, d: int) -> tuple[int, int]:
    """Over how many programs a tile's d features are split, and the features of each.

    The split depends on the shape alone, so that sums are the same on every device.
    """
    splits = max(1, min(PROGRAMS // max(tiles, 1), triton.cdiv(d, LEAST_SLICE)))
    features = triton.cdiv(triton.cdiv(d, splits), 128) * 128
    return triton.cdiv(d, features), features


@triton.jit
def split_program(n, block_n: tl.constexpr):
    """Batch entry and rows of this program, in grids of cdiv(n, block_n) programs an entry."""
    blocks = tl.cdiv(n, block_n)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * block_n + tl.arange(0, block_n)


@triton.jit
def split_program_2d(n, d, block_n: tl.constexpr, block_d: tl.constexpr):
    """Batch entry, rows and features of this program; the features vary fastest."""
    slices = tl.cdiv(d, block_d)
    blocks = tl.cdiv(n, block_n)
    program = tl.program_id(0)
    tile = program // slices
    i = tile % blocks * block_n + tl.arange(0, block_n)
    f = program % slices * block_d + tl.arange(0, block_d)
    return (tile // blocks).to(tl.int64), i, f


@triton.jit
def tile_pointers(x, b, i, f):
    # Widened first: with 2^31 elements or more, even one row's offset may not fit 32 bits.
    pointer, stride_b, stride_n, stride_d = x
    row = pointer + b * stride_b + i.to(tl.int64) * stride_n
    return row[:, None] + (f.to(tl.int64) * stride_d)[None, :]


@triton.jit
def tile_inside(i, n, f, d):
    return (i < n)[:, None] & (f < d)[None, :]


@triton.jit
def load_tile(x, b, i, n, f, d):
    """[i, f] of batch entry b."""
    return tl.load(tile_pointers(x, b, i, f), mask=tile_inside(i, n, f, d), other=0)


@triton.jit
def store_tile(x, b, i, n, f, d, value):
    tl.store(tile_pointers(x, b, i, f), value, mask=tile_inside(i, n, f, d))


@triton.jit
def load_vector(x, b, i, n, other):
    """[i] of batch entry b of numbers (pointer, stride of the batch, of the row)."""
    pointer, stride_b, stride_n = x
    return tl.load(pointer + b * stride_b + i.to(tl.int64) * stride_n, mask=i < n, other=other)


@triton.jit
def signed(weight, difference):
    """weight times the sign of difference, where that of a NaN is 0."""
    # Not 0 in place of the product: the weight may be a NaN.
    return tl.where(difference > 0, weight, tl.where(difference < 0, -weight, 0 * weight))


@triton.jit
def quotient(x, y):
    """x / y to the nearest: in float32, `/` and `sqrt` are approximate.

    A logit is a cosine over a small temperature, so the errors of a norm would show.
    """
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)
