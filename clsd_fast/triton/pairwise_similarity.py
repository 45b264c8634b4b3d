"""Similarity of every row to every key.

Cosines and products share their kernels; L1 distances have no matrix product and get their own.
Each gradient is summed by one program in one order: the gradient of a key is that of a query with
the roles and the table swapped.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    acc_type,
    accumulator_dtype,
    block,
    difference_options,
    gradient_options,
    launch,
    load_tile,
    product_options,
    signed,
    split_features,
    split_program_2d,
    store_tile,
    strided,
)
from ._rows import (
    dot,
    norm,
    normalization_grad,
    row_cosines,
    row_norms,
    row_products,
    saved_norms,
    unit_rows,
)


@triton.jit
def pairwise_similarity_forward_kernel(
    query,
    key,
    table,
    n,
    m,
    d,
    cosine: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
):
    b, i, j = split_program_2d(n, m, block_n, block_m)
    if cosine:
        query_norm = row_norms(query, b, i, n, d, acc_type, block_d)
        values, _ = row_cosines(query, query_norm, i, n, key, None, j, m, b, d, acc_type, block_d)
    else:
        values, _ = row_products(query, i, n, key, j, m, b, d, False, acc_type, block_d)
    store_tile(table, b, i, n, j, m, values)


@triton.jit
def pairwise_similarity_grad_kernel(
    x,
    y,
    y_norms,
    weights,  # [row of x, row of y]: the table's gradient
    grad,
    n,
    m,
    d,
    cosine: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
    block_f: tl.constexpr,
    whole: tl.constexpr,
):
    b, i, f = split_program_2d(n, d, block_n, block_f)
    summed = tl.zeros([block_n, block_f], acc_type)
    projection = tl.zeros([block_n], acc_type)
    if cosine:
        x_norm = row_norms(x, b, i, n, d, acc_type, block_d)
    for start in range(0, m, block_m):
        j = start + tl.arange(0, block_m)
        tile = load_tile(weights, b, i, n, j, m)
        rows = load_tile(y, b, j, m, f, d)
        if cosine:
            if whole:
                wide = rows.to(acc_type)
                y_norm = norm(tl.sum(wide * wide, 1))
            else:
                cosines, y_norm = row_cosines(
                    x, x_norm, i, n, y, y_norms, j, m, b, d, acc_type, block_d
                )
                projection += tl.sum(tile * cosines, 1)
            rows = unit_rows(rows, y_norm)
        summed = dot(tile, rows, summed)
    if cosine:
        summed = normalization_grad(summed, x, b, i, n, f, d, x_norm, projection, whole)
    store_tile(grad, b, i, n, f, d, summed)


@triton.jit
def pairwise_l1_forward_kernel(
    query,
    key,
    partials,  # [splits, B, N, M]
    batch,
    n,
    m,
    d,
    features,  # of a split
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
):
    entry, i, j = split_program_2d(n, m, block_n, block_m)
    b, split = entry % batch, entry // batch
    total = tl.zeros([block_n, block_m, block_d], acc_type)
    first = split * features
    last = tl.minimum(first + features, d)
    for start in range(first, last, block_d):
        f = start + tl.arange(0, block_d)
        x = load_tile(query, b, i, n, f, last).to(acc_type)
        y = load_tile(key, b, j, m, f, last).to(acc_type)
        total += tl.abs(x[:, None, :] - y[None, :, :])
    store_tile(partials, entry, i, n, j, m, tl.sum(total, 2))


@triton.jit
def pairwise_l1_grad_kernel(
    x,
    y,
    weights,  # [row of x, row of y]: the table's gradient
    grad,
    n,
    m,
    d,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_f: tl.constexpr,
):
    b, i, f = split_program_2d(n, d, block_n, block_f)
    rows = load_tile(x, b, i, n, f, d).to(acc_type)
    summed = tl.zeros([block_n, block_f], acc_type)
    for index in range(0, m):
        j = index + tl.arange(0, 1)
        other = load_tile(y, b, j, m, f, d).to(acc_type)
        weight = load_tile(weights, b, i, n, j, m).to(acc_type)
        summed += signed(weight, rows - other)
    store_tile(grad, b, i, n, f, d, summed)


def pairwise_similarity(query: Tensor, key: Tensor, metric: str) -> Tensor:
    """[B, N, D] and [B, M, D] to [B, N, M]; metric is cosine, dot or l1."""
    if metric == "l1":
        return _l1(query, key)
    batch, n, d = query.shape
    m = key.shape[1]
    table = query.new_empty(batch, n, m)
    options = product_options(query, n, m)
    launch(
        pairwise_similarity_forward_kernel,
        batch * triton.cdiv(n, options["block_n"]) * triton.cdiv(m, options["block_m"]),
        strided(query),
        strided(key),
        strided(table),
        n,
        m,
        d,
        cosine=metric == "cosine",
        **options,
    )
    return table


def _l1(query: Tensor, key: Tensor) -> Tensor:
    batch, n, d = query.shape
    m = key.shape[1]
    tiles = batch * triton.cdiv(n, 16) * triton.cdiv(m, 16)
    splits, features = split_features(tiles, d)
    dtype = query.dtype if splits == 1 else accumulator_dtype(query)
    partials = query.new_empty(splits, batch, n, m, dtype=dtype)
    launch(
        pairwise_l1_forward_kernel,
        splits * tiles,
        strided(query),
        strided(key),
        strided(partials.view(splits * batch, n, m)),
        batch,
        n,
        m,
        d,
        features,
        acc_type=acc_type(query),
        block_n=16,
        block_m=16,
        block_d=block(d, 16),
    )
    return partials[0] if splits == 1 else partials.sum(0).to(query.dtype)


def pairwise_similarity_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key; grad_output is [B, N, M]."""
    if metric == "l1":
        return _l1_grad(query, key, grad_output), _l1_grad(key, query, grad_output.mT)
    cosine = metric == "cosine"
    return (
        _product_grad(query, key, grad_output, cosine),
        _product_grad(key, query, grad_output.mT, cosine),
    )


def _product_grad(x: Tensor, y: Tensor, weights: Tensor, cosine: bool) -> Tensor:
    batch, n, d = x.shape
    m = y.shape[1]
    grad = x.new_empty(x.shape)
    options = gradient_options(x, n, m)
    launch(
        pairwise_similarity_grad_kernel,
        batch * triton.cdiv(n, options["block_n"]) * triton.cdiv(d, options["block_f"]),
        strided(x),
        strided(y),
        saved_norms(y, n) if cosine and not options["whole"] else None,
        strided(weights),
        strided(grad),
        n,
        m,
        d,
        cosine=cosine,
        **options,
    )
    return grad


def _l1_grad(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    batch, n, d = x.shape
    grad = x.new_empty(x.shape)
    options = difference_options(x)
    launch(
        pairwise_l1_grad_kernel,
        batch * triton.cdiv(n, options["block_n"]) * triton.cdiv(d, options["block_f"]),
        strided(x),
        strided(y),
        strided(weights),
        strided(grad),
        n,
        y.shape[1],
        d,
        **options,
    )
    return grad
