"""Contrastive loss as a ratio of feature distances.

Rows are few and long (flattened feature maps), so their features are split over programs: forward,
each adds up the absolute differences of its slice, and a second launch adds the slices in order.
Only each row's two sums are stored, never a table of differences.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    difference_options,
    empty_statistic,
    launch,
    load_tile,
    load_vector,
    quotient,
    signed,
    split_features,
    split_program,
    split_program_2d,
    store_tile,
    strided,
)


@triton.jit
def distance_ratio_loss_forward_kernel(
    anchor,
    positive,
    others,
    positive_sums,  # [splits, B, N]: differences from the positive
    negative_sums,  # and from all negatives
    batch,
    n,
    m,
    d,
    features,  # of a split
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_f: tl.constexpr,
):
    entry, i = split_program(n, block_n)
    b = entry % batch
    from_positive = tl.zeros([block_n, block_f], acc_type)
    from_others = tl.zeros([block_n, block_f], acc_type)
    first = entry // batch * features
    last = tl.minimum(first + features, d)
    for start in range(first, last, block_f):
        f = start + tl.arange(0, block_f)
        rows = load_tile(anchor, b, i, n, f, last).to(acc_type)
        from_positive += tl.abs(rows - load_tile(positive, b, i, n, f, last).to(acc_type))
        for index in range(0, m):
            j = index + tl.arange(0, 1)
            difference = tl.abs(rows - load_tile(others, b, j, m, f, last).to(acc_type))
            if in_batch:  # the own one times 0, as in PyTorch: it may be infinite
                difference = tl.where((i == index)[:, None], 0 * difference, difference)
            from_others += difference
    row, inside = entry * n + i, i < n
    tl.store(positive_sums + row, tl.sum(from_positive, 1), mask=inside)
    tl.store(negative_sums + row, tl.sum(from_others, 1), mask=inside)


@triton.jit
def mean_distance(sums, row, rows, splits, count, block_s: tl.constexpr):
    """Sum over the first axis of sums [splits, rows], divided by count, in float64."""
    total = tl.zeros([block_s, row.shape[0]], tl.float64)
    for start in range(0, splits, block_s):
        split = start + tl.arange(0, block_s)
        inside = (split < splits)[:, None] & (row < rows)[None, :]
        pointers = sums + split.to(tl.int64)[:, None] * rows + row[None, :]
        total += tl.load(pointers, mask=inside, other=0)
    return tl.sum(total, 0) / tl.cast(count, tl.float64)


@triton.jit
def distance_ratio_loss_finish_kernel(
    sums,
    loss,
    positive_distance,
    negative_distance,
    eps: tl.float64,
    rows,
    splits,
    positive_count,
    negative_count,
    block_n: tl.constexpr,
    block_s: tl.constexpr,
):
    positive_sums, negative_sums = sums
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    inside = row < rows
    to_positive = mean_distance(positive_sums, row, rows, splits, positive_count, block_s)
    to_negatives = mean_distance(negative_sums, row, rows, splits, negative_count, block_s)
    tl.store(loss + row, to_positive / (to_negatives + eps), mask=inside)
    tl.store(positive_distance + row, to_positive, mask=inside)
    tl.store(negative_distance + row, to_negatives, mask=inside)


@triton.jit
def distance_weights(statistics, eps, b, i, n, count, d, acc_type: tl.constexpr):
    """Gradients of row i's loss by one difference from its positive and from one negative."""
    grad_loss, positive_distance, negative_distance = statistics
    grad = load_vector(grad_loss, b, i, n, 0).to(acc_type)
    below = load_vector(negative_distance, b, i, n, 1) + tl.full([], eps, acc_type)
    own = quotient(grad, below * tl.cast(d, acc_type))
    above = load_vector(positive_distance, b, i, n, 0)
    return own, -quotient(own * above, below * tl.cast(count, acc_type))


@triton.jit
def distance_ratio_loss_anchor_grad_kernel(
    anchor,
    positive,
    others,
    statistics,
    eps: tl.float64,
    grad_anchor,
    grad_positive,  # None in batch, where it belongs to the kernel below
    n,
    m,
    d,
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_f: tl.constexpr,
):
    b, i, f = split_program_2d(n, d, block_n, block_f)
    own, share = distance_weights(statistics, eps, b, i, n, m - in_batch, d, acc_type)
    rows = load_tile(anchor, b, i, n, f, d).to(acc_type)
    difference = rows - load_tile(positive, b, i, n, f, d).to(acc_type)
    paired = signed(own[:, None], difference)
    grad = paired
    for index in range(0, m):
        j = index + tl.arange(0, 1)
        difference = rows - load_tile(others, b, j, m, f, d).to(acc_type)
        if in_batch:
            difference = tl.where((i == index)[:, None], 0, difference)
        grad += signed(share[:, None], difference)
    store_tile(grad_anchor, b, i, n, f, d, grad)
    if grad_positive is not None:
        store_tile(grad_positive, b, i, n, f, d, -paired)


@triton.jit
def distance_ratio_loss_others_grad_kernel(
    others,
    anchor,
    statistics,
    eps: tl.float64,
    grad_others,
    m,
    n,
    d,
    in_batch: tl.constexpr,
    acc_type: tl.constexpr,
    block_n: tl.constexpr,
    block_f: tl.constexpr,
):
    b, j, f = split_program_2d(m, d, block_n, block_f)
    rows = load_tile(others, b, j, m, f, d).to(acc_type)
    summed = tl.zeros([block_n, block_f], acc_type)
    for index in range(0, n):
        i = index + tl.arange(0, 1)
        own, weight = distance_weights(statistics, eps, b, i, n, m - in_batch, d, acc_type)
        if in_batch:
            weight = tl.where(j == i, own, weight)
        summed += signed(weight[:, None], rows - load_tile(anchor, b, i, n, f, d).to(acc_type))
    store_tile(grad_others, b, j, m, f, d, summed)


def distance_ratio_loss(
    anchor: Tensor, positive: Tensor, negatives: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, distance to the positive and mean distance to the negatives of each row, [B, N] each.

    Args:
        anchor: [B, N, D]; N >= 2 without negatives.
        positive: [B, N, D].
        negatives: [B, M, D] or None for the other positives.
        eps: added to the denominator.
    """
    batch, n, d = anchor.shape
    in_batch = negatives is None
    others = positive if negatives is None else negatives
    m = others.shape[1]
    loss = anchor.new_empty(batch, n)
    to_positive, to_negatives = (empty_statistic(anchor, batch, n) for _ in range(2))
    options = difference_options(anchor)
    tiles = batch * triton.cdiv(n, options["block_n"])
    splits, features = split_features(tiles, d)
    sums = [empty_statistic(anchor, splits, batch, n) for _ in range(2)]
    launch(
        distance_ratio_loss_forward_kernel,
        splits * tiles,
        strided(anchor),
        strided(positive),
        strided(others),
        *sums,
        batch,
        n,
        m,
        d,
        features,
        in_batch=in_batch,
        **options,
    )
    launch(
        distance_ratio_loss_finish_kernel,
        triton.cdiv(batch * n, 16),
        tuple(sums),
        loss,
        to_positive,
        to_negatives,
        eps,
        batch * n,
        splits,
        d,
        d * (m - in_batch),
        block_n=16,
        block_s=min(64, triton.next_power_of_2(splits)),
    )
    return loss, to_positive, to_negatives


def distance_ratio_loss_backward(
    grad_loss: Tensor,
    positive_distance: Tensor,
    negative_distance: Tensor,
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of anchor, positive and negatives (empty if None).

    grad_loss and the distances are [B, N]; the rest is as in :func:`distance_ratio_loss`.
    """
    batch, n, d = anchor.shape
    in_batch = negatives is None
    others = positive if negatives is None else negatives
    m = others.shape[1]
    grad_anchor, grad_positive = anchor.new_empty(anchor.shape), anchor.new_empty(positive.shape)
    grad_negatives = anchor.new_empty(0 if in_batch else others.shape)
    statistics = strided(grad_loss), strided(positive_distance), strided(negative_distance)
    options = difference_options(anchor) | {"in_batch": in_batch}
    slices = triton.cdiv(d, options["block_f"])
    launch(
        distance_ratio_loss_anchor_grad_kernel,
        batch * triton.cdiv(n, options["block_n"]) * slices,
        strided(anchor),
        strided(positive),
        strided(others),
        statistics,
        eps,
        strided(grad_anchor),
        None if in_batch else strided(grad_positive),
        n,
        m,
        d,
        **options,
    )
    launch(
        distance_ratio_loss_others_grad_kernel,
        batch * triton.cdiv(m, options["block_n"]) * slices,
        strided(others),
        strided(anchor),
        statistics,
        eps,
        strided(grad_positive if in_batch else grad_negatives),
        m,
        n,
        d,
        **options,
    )
    return grad_anchor, grad_positive, grad_negatives
