"""Norms, units and products of rows in Triton kernels; the words are those of ``_launch.py``."""

import triton
import triton.language as tl
from torch import Tensor

from ..reference import contrast
from ._launch import (
    acc_type,
    block,
    empty_statistic,
    launch,
    load_tile,
    load_vector,
    quotient,
    split_program,
    strided,
)

NORM_EPS = tl.constexpr(contrast.NORM_EPS)
#: With more rows, norms are computed once, by a launch of their own, instead of by each program.
NORMS_AT_ONCE = 128


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
