"""What the Triton kernels share: launching, block sizes, and reading and multiplying rows.

In kernels, n, m and d are numbers of rows, of other rows and of features, b is the index into the
batch (int64), and i, j and f are blocks of indices. Rows are a tuple (pointer, stride of the batch,
of the row, of the feature), as :func:`strided` makes it. What lies outside of them reads as 0.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference

NORM_EPS = tl.constexpr(reference.NORM_EPS)
#: With more rows, norms are computed once, by a launch of their own, instead of by each program.
NORMS_AT_ONCE = 128
#: Programs that keep a large GPU busy; fewer tiles than that are split along the features,
PROGRAMS = 1024
#: into strips of no fewer than this.
LEAST_STRIP = 1024


def launch(kernel: triton.JITFunction, programs: int, *args: object, **options: object) -> None:
    """Run a one-dimensional grid on the device of the first rows; nothing if it is empty."""
    if programs == 0:
        return
    device = args[0][0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **options)


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


def product_options(x: Tensor, rows: int, columns: int) -> dict[str, object]:
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


def gradient_options(x: Tensor, rows: int, columns: int) -> dict[str, object]:
    """The same and the features of a gradient that a program holds, which may be all of them."""
    block_f = block(x.shape[2], {torch.float64: 16, torch.float32: 64}.get(x.dtype, 128))
    whole = x.shape[2] <= block_f
    return product_options(x, rows, columns) | {"block_f": block_f, "whole": whole}


def difference_options(x: Tensor) -> dict[str, object]:
    """Options of a kernel that subtracts rows of one tile from one row after another."""
    return {"acc_type": acc_type(x), "block_n": 16, "block_f": block(x.shape[2], 128)}


def split_features(tiles: int, d: int) -> tuple[int, int]:
    """Over how many programs a tile's d features are split, and the features of each.

    The split depends on the shape alone, so that sums are the same on every device.
    """
    splits = max(1, min(PROGRAMS // max(tiles, 1), triton.cdiv(d, LEAST_STRIP)))
    strip = triton.cdiv(triton.cdiv(d, splits), 128) * 128
    return triton.cdiv(d, strip), strip


@triton.jit
def split_program(n, block_n: tl.constexpr):
    """Batch entry and rows of this program, in grids of cdiv(n, block_n) programs an entry."""
    blocks = tl.cdiv(n, block_n)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * block_n + tl.arange(0, block_n)


@triton.jit
def split_program_2d(n, d, block_n: tl.constexpr, block_d: tl.constexpr):
    """Batch entry, rows and features of this program; the features vary fastest."""
    strips = tl.cdiv(d, block_d)
    blocks = tl.cdiv(n, block_n)
    program = tl.program_id(0)
    tile = program // strips
    i = tile % blocks * block_n + tl.arange(0, block_n)
    f = program % strips * block_d + tl.arange(0, block_d)
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
    """weight times the sign of difference, 0 where that is 0."""
    return tl.where(difference > 0, weight, tl.where(difference < 0, -weight, 0))


@triton.jit
def quotient(x, y):
    """x / y to the nearest: in float32, `/` and `sqrt` are approximate.

    A logit is a cosine over a small temperature, so the errors of a norm would show.
    """
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def norm(squares):
    """Euclidean norms; infinite for a zero row, so that dividing by it gives 0."""
    root = tl.sqrt(squares) if squares.dtype == tl.float64 else tl.sqrt_rn(squares)
    return tl.where(root <= NORM_EPS, float("inf"), root)


@triton.jit
def over_norms(values, norms, like):
    """values / norms in the accumulator's type; multiplied by the inverse if ``like`` is 16-bit.

    16-bit rows are rounded more coarsely than that, and a division for each product would take
    longer than their products.
    """
    wide = values.to(norms.dtype)
    if like.dtype.primitive_bitwidth == 16:
        return wide * quotient(tl.full(norms.shape, 1, norms.dtype), norms)
    return quotient(wide, norms)


@triton.jit
def unit_rows(x, norms):
    """Rows of the dtype of x and unit length."""
    return over_norms(x, norms[:, None], x).to(x.dtype)


@triton.jit
def row_norms(x, b, i, n, d, acc_type: tl.constexpr, block_d: tl.constexpr):
    """`norm` of rows i."""
    squares = tl.zeros([i.shape[0]], acc_type)
    for start in range(0, d, block_d):
        tile = load_tile(x, b, i, n, start + tl.arange(0, block_d), d).to(acc_type)
        squares += tl.sum(tile * tile, 1)
    return norm(squares)


@triton.jit
def paired_cosines(x, y, b, i, n, d, acc_type: tl.constexpr, block_d: tl.constexpr):
    """Cosine of row i of x with row i of y, and both norms.

    Of float32, products are those of :func:`row_products` to the last bit, so that the logits of
    keys which are alike are the same number, the positive's too. 16-bit rows are rounded more
    coarsely than two orders of summation.
    """
    as_tile: tl.constexpr = x[0].dtype.element_ty == tl.float32
    tile = tl.zeros([i.shape[0], i.shape[0]], acc_type)
    products = tl.zeros([i.shape[0]], acc_type)
    x_squares = tl.zeros([i.shape[0]], acc_type)
    y_squares = tl.zeros([i.shape[0]], acc_type)
    for start in range(0, d, block_d):
        f = start + tl.arange(0, block_d)
        x_tile = load_tile(x, b, i, n, f, d).to(acc_type)
        y_tile = load_tile(y, b, i, n, f, d).to(acc_type)
        if as_tile:
            tile = dot(x_tile, tl.trans(y_tile), tile)
        else:
            products += tl.sum(x_tile * y_tile, 1)
        x_squares += tl.sum(x_tile * x_tile, 1)
        y_squares += tl.sum(y_tile * y_tile, 1)
    if as_tile:
        products = tl.sum(tl.where(i[:, None] == i[None, :], tile, 0), 1)
    x_norm, y_norm = norm(x_squares), norm(y_squares)
    return quotient(products, x_norm * y_norm), x_norm, y_norm


@triton.jit
def normalization_grad(grad, x, b, i, n, f, d, x_norm, projection, whole: tl.constexpr):
    """Gradient of rows i of x from that of their unit rows, at features f.

    ``projection`` is the product of grad with the unit rows; it is found here if f is all features.
    That leaves nothing but rounding of the last operation along the row.
    """
    units = quotient(load_tile(x, b, i, n, f, d).to(grad.dtype), x_norm[:, None])
    if whole:
        projection = tl.sum(grad * units, 1)
    return quotient(grad - units * projection[:, None], x_norm[:, None])


@triton.jit
def dot(a, b, total):
    if total.dtype == tl.float64:  # which `tl.dot` does not compile for every GPU
        return total + tl.sum(a[:, :, None] * b[None, :, :], 1)
    # 16-bit products are exact in the accumulator. TF32 would cost float32 half of its digits.
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def add_weighted(total, weights, units):
    """total + weights @ units, and the weights as the product took them, rounded to units' dtype.

    Few of the weights are near the largest of their tile, which is what float16 must hold: a mean
    over many rows has gradients below its range.
    """
    if units.dtype == tl.float16:
        largest = tl.maximum(tl.max(tl.abs(weights)), 1e-30)
        rounded = (weights / largest).to(tl.float16)
        return total + largest * dot(rounded, units, tl.zeros_like(total)), rounded * largest
    rounded = weights.to(units.dtype)
    return dot(rounded, units, total), rounded.to(total.dtype)


@triton.jit
def row_products(
    x,
    i,
    n,
    y,
    j,
    m,
    b,
    d,
    squares: tl.constexpr,
    acc_type: tl.constexpr,
    block_d: tl.constexpr,
    swapped: tl.constexpr = False,
):
    """Products of rows i of x with rows j of y, [i, j], and the squared norms of the latter.

    ``swapped`` sums them as this function does for rows j of y with rows i of x.
    """
    products = tl.zeros([i.shape[0], j.shape[0]], acc_type)
    if swapped:
        products = tl.trans(products)
    y_squares = tl.zeros([j.shape[0]], acc_type)
    for start in range(0, d, block_d):
        f = start + tl.arange(0, block_d)
        x_tile = load_tile(x, b, i, n, f, d)
        y_tile = load_tile(y, b, j, m, f, d)
        if swapped:
            products = dot(y_tile, tl.trans(x_tile), products)
        else:
            products = dot(x_tile, tl.trans(y_tile), products)
        if squares:
            wide = y_tile.to(acc_type)
            y_squares += tl.sum(wide * wide, 1)
    if swapped:
        products = tl.trans(products)
    return products, y_squares


@triton.jit
def row_cosines(
    x,
    x_norm,
    i,
    n,
    y,
    saved,
    j,
    m,
    b,
    d,
    acc_type: tl.constexpr,
    block_d: tl.constexpr,
    swapped: tl.constexpr = False,
):
    """Cosines of rows i of x with rows j of y, [i, j], and the norms of the latter.

    ``x_norm`` are those of the former; ``saved`` are those of all of y, or None. ``swapped`` is
    :func:`row_products`'.
    """
    products, squares = row_products(
        x, i, n, y, j, m, b, d, saved is None, acc_type, block_d, swapped
    )
    y_norm = norm(squares) if saved is None else load_vector(saved, b, j, m, float("inf"))
    like = tl.zeros([1], x[0].dtype.element_ty)
    return over_norms(products, x_norm[:, None] * y_norm[None, :], like), y_norm


@triton.jit
def row_norms_kernel(
    x, norms, n, d, acc_type: tl.constexpr, block_n: tl.constexpr, block_d: tl.constexpr
):
    b, i = split_program(n, block_n)
    tl.store(norms + b * n + i, row_norms(x, b, i, n, d, acc_type, block_d), mask=i < n)


def saved_norms(x: Tensor, others: int) -> tuple | None:
    """`norm` of the rows of [B, N, D]: [B, N] in the accumulator's dtype.

    None if so few rows are multiplied with those of x that each program finds the norms itself.
    """
    if others <= NORMS_AT_ONCE:
        return None
    batch, n, d = x.shape
    norms = empty_statistic(x, batch, n)
    options = {"acc_type": acc_type(x), "block_n": 16, "block_d": block(d, 128)}
    programs = batch * triton.cdiv(n, options["block_n"])
    launch(row_norms_kernel, programs, strided(x), norms, n, d, **options)
    return strided(norms)
