"""Batched contrastive (InfoNCE) loss without storing the logits.

The forward keeps a running maximum and a rescaled sum; the backward recomputes the cosines, once
for the kernel that owns query rows and once for the one that owns keys, so that each gradient is
summed by one program in one order. Row i's positive is computed as a product of two rows and left
out of the tile of products, in every kernel alike: no mask or label can exclude it.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..reference.contrast import reduce
from ._launch import (
    empty_statistic,
    gradient_options,
    launch,
    load_tile,
    load_vector,
    product_options,
    quotient,
    split_program,
    split_program_2d,
    store_tile,
    strided,
    tile_inside,
    tile_pointers,
)
from ._rows import (
    add_weighted,
    normalization_grad,
    paired_cosines,
    row_cosines,
    row_norms,
    saved_norms,
    unit_rows,
)

#: Elements of the sum over all rows that is the temperature's gradient, at a time.
SUM_BLOCK = tl.constexpr(1024)


@triton.jit
def inverse_temperature(learned, temperature, acc_type: tl.constexpr):
    if learned is not None:
        temperature = tl.load(learned)
    # float64 divides to the nearest; `full` takes a number as it is, `cast` by way of float32.
    return (1.0 / tl.full([], temperature, tl.float64)).to(acc_type)


@triton.jit
def inner_product(x, y, batch, n, acc_type: tl.constexpr):
    """Sum of x * y, both [batch, n], in one fixed order."""
    x_pointer, x_stride_b, x_stride_n = x
    y_pointer, y_stride_b, y_stride_n = y
    total = tl.zeros([SUM_BLOCK], acc_type)
    for start in range(0, batch * n, SUM_BLOCK):
        k = start + tl.arange(0, SUM_BLOCK)
        b, i = (k // n).to(tl.int64), (k % n).to(tl.int64)
        inside = k < batch * n
        x_values = tl.load(x_pointer + b * x_stride_b + i * x_stride_n, mask=inside, other=0)
        y_values = tl.load(y_pointer + b * y_stride_b + i * y_stride_n, mask=inside, other=0)
        total += x_values.to(acc_type) * y_values.to(acc_type)
    return tl.sum(total, 0)


@triton.jit
def kept_pairs(b, i, n, j, m, mask, labels, in_batch: tl.constexpr):
    """Which pairs [i, j] are negatives; queries and keys may swap roles if mask is transposed."""
    kept = tile_inside(i, n, j, m)
    if in_batch:
        kept = kept & (i[:, None] != j[None, :])
    if labels is not None:
        row_labels, column_labels = load_vector(labels, b, i, n, 0), load_vector(labels, b, j, m, 0)
        kept = kept & (row_labels[:, None] != column_labels[None, :])
    if mask is not None:
        kept = kept & (tl.load(tile_pointers(mask, b, i, j), mask=kept, other=0) == 0)
    return kept


@triton.jit
def info_nce_forward_kernel(
    query,
    positive,
    keys,
    key_norms,
    mask,
    labels,
    learned_temperature,
    temperature: tl.float64,
    loss,
    maximum,
    sum_exp,
    spread,
    n,
    m,
    d,
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
):
    b, i = split_program(n, block_n)
    scale = inverse_temperature(learned_temperature, temperature, acc_type)
    cosine, query_norm, _ = paired_cosines(query, positive, b, i, n, d, acc_type, block_d)
    own = cosine * scale
    # Starting from the positive keeps the maximum finite.
    highest = own
    total = tl.full([block_n], 1, acc_type)  # of exp(logit - highest)
    weighted = tl.zeros([block_n], acc_type)  # of exp(logit - highest) (logit - highest)
    for start in range(0, m, block_m):
        j = start + tl.arange(0, block_m)
        cosines, _ = row_cosines(
            query, query_norm, i, n, keys, key_norms, j, m, b, d, acc_type, block_d
        )
        kept = kept_pairs(b, i, n, j, m, mask, labels, in_batch)
        logits = tl.where(kept, cosines * scale, float("-inf"))
        lower, highest = highest, tl.maximum(highest, tl.max(logits, 1))
        relative = tl.where(kept, logits - highest[:, None], 0)
        exps = tl.where(kept, tl.exp(relative), 0)
        fall = lower - highest
        shrink = tl.exp(fall)
        weighted = shrink * (weighted + fall * total) + tl.sum(exps * relative, 1)
        total = shrink * total + tl.sum(exps, 1)
    own -= highest
    row, inside = b * n + i, i < n
    tl.store(loss + row, tl.log(total) - own, mask=inside)
    tl.store(maximum + row, highest, mask=inside)
    tl.store(sum_exp + row, total, mask=inside)
    tl.store(spread + row, weighted / total - own, mask=inside)


@triton.jit
def info_nce_query_grad_kernel(
    query,
    positive,
    keys,
    key_norms,
    mask,
    labels,
    learned_temperature,
    temperature: tl.float64,
    grad_loss,
    maximum,
    sum_exp,
    spread,
    share: tl.float64,  # of a row in the reduced loss
    grad_query,
    grad_positive,  # None in batch, where it belongs to the kernel below
    grad_temperature,
    batch,
    n,
    m,
    d,
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
    block_f: tl.constexpr,
    whole: tl.constexpr,
):
    b, i, f = split_program_2d(n, d, block_n, block_f)
    scale = inverse_temperature(learned_temperature, temperature, acc_type)
    if learned_temperature is not None:  # noqa: SIM102 - `and` would not be decided at compile time
        if tl.program_id(0) == 0:
            total_spread = inner_product(grad_loss, spread, batch, n, acc_type)
            tl.store(grad_temperature, -total_spread * scale * tl.full([], share, acc_type))
    cosine, query_norm, positive_norm = paired_cosines(
        query, positive, b, i, n, d, acc_type, block_d
    )
    highest = load_vector(maximum, b, i, n, 0)
    # Gradients of the unit rows: the sum over keys of weight * unit key. Its product with the unit
    # row is the sum of weight * cosine.
    summed = tl.zeros([block_n, block_f], acc_type)
    projection = tl.zeros([block_n], acc_type)
    for start in range(0, m, block_m):
        j = start + tl.arange(0, block_m)
        cosines, key_norm = row_cosines(
            query, query_norm, i, n, keys, key_norms, j, m, b, d, acc_type, block_d
        )
        kept = kept_pairs(b, i, n, j, m, mask, labels, in_batch)
        exps = tl.where(kept, tl.exp(cosines * scale - highest[:, None]), 0)
        units = unit_rows(load_tile(keys, b, j, m, f, d), key_norm)
        summed, exps = add_weighted(summed, exps, units)
        projection += tl.sum(exps * cosines, 1)
    total = load_vector(sum_exp, b, i, n, 1)
    grad = load_vector(grad_loss, b, i, n, 0).to(acc_type) * (scale * tl.full([], share, acc_type))
    own = grad * (tl.exp(cosine * scale - highest) / total - 1)
    positive_units = quotient(
        load_tile(positive, b, i, n, f, d).to(acc_type), positive_norm[:, None]
    )
    summed = summed * (grad / total)[:, None] + positive_units * own[:, None]
    projection = projection * (grad / total) + cosine * own
    result = normalization_grad(summed, query, b, i, n, f, d, query_norm, projection, whole)
    store_tile(grad_query, b, i, n, f, d, result)
    if grad_positive is not None:
        query_units = quotient(load_tile(query, b, i, n, f, d).to(acc_type), query_norm[:, None])
        summed = query_units * own[:, None]
        result = normalization_grad(
            summed, positive, b, i, n, f, d, positive_norm, cosine * own, whole
        )
        store_tile(grad_positive, b, i, n, f, d, result)


@triton.jit
def info_nce_key_grad_kernel(
    keys,
    query,
    query_norms,
    mask,  # [key, query]
    labels,
    learned_temperature,
    temperature: tl.float64,
    grad_loss,
    maximum,
    sum_exp,
    share: tl.float64,
    grad_keys,
    m,
    n,
    d,
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_d: tl.constexpr,
    block_f: tl.constexpr,
    whole: tl.constexpr,
):
    b, j, f = split_program_2d(m, d, block_m, block_f)
    scale = inverse_temperature(learned_temperature, temperature, acc_type)
    key_norm = row_norms(keys, b, j, m, d, acc_type, block_d)
    summed = tl.zeros([block_m, block_f], acc_type)
    projection = tl.zeros([block_m], acc_type)
    for start in range(0, n, block_n):
        i = start + tl.arange(0, block_n)
        # Those of the forward to the last bit: where one key has nearly all of a query's softmax,
        # its weight is 1 minus rounding only if logit and largest logit are the same number. The
        # weights of 16-bit rows are rounded more coarsely than that.
        cosines, query_norm = row_cosines(
            keys,
            key_norm,
            j,
            m,
            query,
            query_norms,
            i,
            n,
            b,
            d,
            acc_type,
            block_d,
            swapped=keys[0].dtype.element_ty.primitive_bitwidth > 16,
        )
        kept = kept_pairs(b, j, m, i, n, mask, labels, in_batch)
        highest = load_vector(maximum, b, i, n, 0)
        total = load_vector(sum_exp, b, i, n, 1)
        grad = load_vector(grad_loss, b, i, n, 0).to(acc_type) / total
        # 0 for excluded pairs of any gradient, which may be a NaN.
        weights = tl.where(kept, tl.exp(cosines * scale - highest[None, :]) * grad[None, :], 0)
        units = unit_rows(load_tile(query, b, i, n, f, d), query_norm)
        summed, weights = add_weighted(summed, weights, units)
        projection += tl.sum(weights * cosines, 1)
    if in_batch:
        cosine, query_norm, _ = paired_cosines(query, keys, b, j, n, d, acc_type, block_d)
        highest = load_vector(maximum, b, j, n, 0)
        total = load_vector(sum_exp, b, j, n, 1)
        grad = load_vector(grad_loss, b, j, n, 0).to(acc_type)
        own = grad * (tl.exp(cosine * scale - highest) / total - 1)
        units = quotient(load_tile(query, b, j, n, f, d).to(acc_type), query_norm[:, None])
        summed += units * own[:, None]
        projection += cosine * own
    scale *= tl.full([], share, acc_type)
    summed, projection = summed * scale, projection * scale
    summed = normalization_grad(summed, keys, b, j, m, f, d, key_norm, projection, whole)
    store_tile(grad_keys, b, j, m, f, d, summed)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    learned_temperature: Tensor | None,
    temperature: float,
    reduction: str,
    save_gradients: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Reduced loss, and in a list each row's statistics [3, B, N].

    They are its largest logit, sum of exp(logit - largest) and spread.

    Args:
        query: [B, N, D].
        positive_key: [B, P, D], P >= N; P == N with given negatives.
        negative_keys: [B, M, D] or None for the other positives.
        mask: bool [B, N, M], or [B, N, P] without negative_keys; True excludes.
        labels: int64 [B, P] or None; equal ones exclude. Without negative_keys only.
        learned_temperature: of one element, used instead of temperature if given.
        temperature: a number.
        reduction: none, mean or sum. The last two are a launch of PyTorch's after the kernel.
        save_gradients: must be False.
    """
    if save_gradients:
        raise RuntimeError("info_nce: expected save_gradients False for Triton kernels, got True")
    batch, n, d = query.shape
    in_batch = negative_keys is None
    keys = positive_key if negative_keys is None else negative_keys
    losses = empty_statistic(query, batch, n)
    statistics = empty_statistic(query, 3, batch, n)
    options = product_options(query, n, keys.shape[1])
    launch(
        info_nce_forward_kernel,
        batch * triton.cdiv(n, options["block_n"]),
        strided(query),
        strided(positive_key),
        strided(keys),
        saved_norms(keys, n),
        strided(mask),
        strided(labels),
        learned_temperature,
        temperature,
        losses,
        *statistics.unbind(),
        n,
        keys.shape[1],
        d,
        in_batch=in_batch,
        **options,
    )
    loss = reduce(losses, reduction).to(query.dtype)
    return loss, [statistics]


def info_nce_backward(
    grad_loss: Tensor,
    statistics: Tensor,
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    learned_temperature: Tensor | None,
    temperature: float,
    reduction: str,
) -> list[Tensor]:
    """Gradients of the rows and of the temperature that are given.

    grad_loss is [B, N], or [] of a reduced loss; the rest is as in :func:`info_nce`.
    """
    batch, n, d = query.shape
    in_batch = negative_keys is None
    keys = positive_key if negative_keys is None else negative_keys
    m = keys.shape[1]
    given = (query, positive_key, negative_keys, learned_temperature)
    grads = [tensor.new_empty(tensor.shape) for tensor in given if tensor is not None]
    grad_query, grad_positive = grads[:2]
    grad_temperature = None if learned_temperature is None else grads[-1]
    if grad_temperature is not None and query.numel() == 0:
        grad_temperature.zero_()  # there is no program to write it
    terms = strided(labels), learned_temperature, temperature
    maximum, sum_exp, spread = statistics
    grad_loss = grad_loss.expand(batch, n)
    rows = strided(grad_loss), strided(maximum), strided(sum_exp)
    share = 1.0 / max(1, batch * n) if reduction == "mean" else 1.0
    options = gradient_options(query, n, m) | {"in_batch": in_batch}
    slices = triton.cdiv(d, options["block_f"])
    launch(
        info_nce_query_grad_kernel,
        batch * triton.cdiv(n, options["block_n"]) * slices,
        strided(query),
        strided(positive_key),
        strided(keys),
        saved_norms(keys, n),
        strided(mask),
        *terms,
        *rows,
        strided(spread),
        share,
        strided(grad_query),
        None if in_batch else strided(grad_positive),
        grad_temperature,
        batch,
        n,
        m,
        d,
        **options,
    )
    launch(
        info_nce_key_grad_kernel,
        batch * triton.cdiv(m, options["block_m"]) * slices,
        strided(keys),
        strided(query),
        saved_norms(query, n),
        None if mask is None else strided(mask.mT),
        *terms,
        *rows,
        share,
        strided(grads[1 if in_batch else 2]),
        m,
        n,
        d,
        **options,
    )
    return grads
