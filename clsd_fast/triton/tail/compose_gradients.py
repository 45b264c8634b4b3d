"""Gradients of what a tail's composed weight is composed of; the words are those of ``compose``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._images import empty_images
from .._launch import block, launch, split_program_2d
from .._rows import dot
from ..conv.images import of_branch
from .compose import (
    BLOCK,
    Biases,
    Parameters,
    Stages,
    Tensors,
    added,
    compose_all,
    element,
    following,
    stage_weights,
    tail_and_pair,
    tap_products,
)
from .taps import PADDING, STAGE, TAPS, taps_through


@triton.jit
def store_bias_grad(number, grad, target, shift, channels, outputs, factor: tl.constexpr):
    """The gradient of the last convolution's bias: the sum of the output's. By the taps to its own
    square, the channel of 1 has it of each of the square's pixels. Program 0 of a tail has it."""
    taps: tl.constexpr = TAPS[factor]
    middle = grad + tl.cast(channels, tl.int64) * (taps * taps * outputs)
    place = tl.arange(0, 16)
    x, y = PADDING[factor] + place // factor, PADDING[factor] + place % factor
    pixels, exist = middle + (x * taps + y) * outputs, place < factor * factor
    for k in range(tl.where(number == 0, outputs, 0)):
        # So few numbers that float64 costs nothing: their sum is as large as one over all pixels.
        if shift is None:
            total = tl.sum(tl.load(pixels + k, mask=exist, other=0).to(tl.float64), 0)
        else:
            total = tl.zeros([], tl.float64)
            for other in range(outputs):
                share = tl.load(shift + other * outputs + k).to(tl.float64)
                numbers = tl.load(pixels + other, mask=exist, other=0)
                total += share * tl.sum(numbers.to(tl.float64), 0)
        tl.store(target + k, total)


@triton.jit
def tail_products_grad_kernel(
    grads,  # of each tail: [C + 1, columns, rows, K]
    grad_products,  # (pointer to [tail, pair, C + 1, n],)
    grad_biases,  # of each tail's last convolution, or None
    shift,  # of that, or None
    blocks,
    channels,
    outputs,
    factor: tl.constexpr,
    block_e: tl.constexpr,
):
    rows: tl.constexpr = 3 * STAGE[factor]
    taps: tl.constexpr = TAPS[factor]
    then: tl.constexpr = TAPS[factor // STAGE[factor]]
    size = then * then * outputs
    tail, e = element(blocks, block_e)
    grad = of_branch(grads, tail)
    if grad_biases is not None:
        number, target = tl.program_id(0) % blocks, of_branch(grad_biases, tail)
        store_bias_grad(number, grad, target, shift, channels, outputs, factor)
    n, line = e % size, e // size
    k, y, x = n % outputs, n // outputs % then, n // (outputs * then)
    c, pair = line % (channels + 1), line // (channels + 1)
    exists = pair < rows * rows
    y_tap, y_inside, y_edge, y_sign = taps_through(pair // rows, y, factor)
    x_tap, x_inside, x_edge, x_sign = taps_through(pair % rows, x, factor)
    first = grad + c * (taps * taps * outputs) + k
    row, row_edge = y_tap * outputs, y_edge * outputs
    column, column_edge = x_tap * (taps * outputs), x_edge * (taps * outputs)
    x_edges, y_edges = exists & (x_sign != 0), exists & (y_sign != 0)
    total = tl.load(first + column + row, mask=exists & x_inside & y_inside, other=0)
    total += y_sign * tl.load(first + column + row_edge, mask=y_edges & x_inside, other=0)
    total += x_sign * tl.load(first + column_edge + row, mask=x_edges & y_inside, other=0)
    both = tl.load(first + column_edge + row_edge, mask=x_edges & y_edges, other=0)
    target = grad_products[0] + tail * (rows * rows) * (channels + 1) * size + e
    tl.store(target, total + x_sign * y_sign * both, mask=exists)


@triton.jit
def tail_stage_grad_kernel(
    grad_products,  # (pointer to [tail, pair, C + 1, n],)
    afters,  # of each tail
    grad_weights,
    grad_biases,
    shift,
    after_strides,
    weight_strides,
    channels,
    features,
    outputs,
    factor: tl.constexpr,
    last: tl.constexpr,
    acc_type: tl.constexpr,
    block_c: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    stage: tl.constexpr = STAGE[factor]
    taps: tl.constexpr = TAPS[factor // stage]
    size = taps * taps * outputs
    place, c, m = split_program_2d(channels + 1, features, block_c, block_m)
    tail, pair = tail_and_pair(place, factor)
    total = tl.zeros([block_c, block_m], acc_type)
    n = tl.arange(0, block_n)
    k, tap = n % outputs, n // outputs
    for _ in range(0, size, block_n):
        exists = (c <= channels)[:, None] & (n < size)[None, :]
        pointers = tap_products(grad_products[0], place, channels + 1, c, size, n)
        grads = tl.load(pointers, mask=exists, other=0)
        after = following(
            *(afters, after_strides, shift, tail, m, n, k, tap, features, outputs, factor, last)
        )
        total = dot(grads, tl.trans(after), total)
        # Counted, since divisions take long.
        n, k = n + block_n, k + block_n % outputs
        is_end = k >= outputs
        k = tl.where(is_end, k - outputs, k)
        tap += block_n // outputs + is_end.to(tl.int32)
    weight = of_branch(grad_weights, tail)
    v, weights, is_one = stage_weights(weight, weight_strides, c, m, pair, channels, stage)
    tl.store(weights, total, mask=(c < channels)[:, None] & (m < features)[None, :])
    is_bias = is_one & (m < features)[None, :]
    biases = of_branch(grad_biases, tail) + v[None, :] + tl.zeros_like(c)[:, None]
    tl.store(biases, total, mask=is_bias)


@triton.jit
def tail_after_grad_kernel(
    weights,  # of each tail
    biases,  # or None
    grad_products,  # [tail, pair, C + 1, n]
    partials,  # [tail, pair, M + 1, n]
    weight_strides,
    bias_stride,
    channels,
    features,
    outputs,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_c: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    taps: tl.constexpr = TAPS[factor // STAGE[factor]]
    size = taps * taps * outputs
    place, m, n = split_program_2d(features + 1, size, block_m, block_n)
    tail, pair = tail_and_pair(place, factor)
    total = tl.zeros([block_m, block_n], acc_type)
    for start in range(0, channels + 1, block_c):
        c = start + tl.arange(0, block_c)
        responses = added(
            *(weights, weight_strides, biases, bias_stride, tail),
            *(c, m, pair, channels, features, STAGE[factor]),
        )
        exists = (c <= channels)[:, None] & (n < size)[None, :]
        pointers = tap_products(grad_products, place, channels + 1, c, size, n)
        total = dot(tl.trans(responses), tl.load(pointers, mask=exists, other=0), total)
    exists = (m <= features)[:, None] & (n < size)[None, :]
    tl.store(tap_products(partials, place, features + 1, m, size, n), total, mask=exists)


@triton.jit
def sum_over(partials, e, exist, pairs, of_pair, acc_type: tl.constexpr):
    """Elements e of the partials of all pairs, added up in their order."""
    total = tl.zeros([16, e.shape[0]], acc_type)
    for start in range(0, pairs, 16):
        pair = start + tl.arange(0, 16)
        place = (pair.to(tl.int64) * of_pair)[:, None] + e[None, :]
        mask = (pair < pairs)[:, None] & exist[None, :]
        total += tl.load(partials + place, mask=mask, other=0)
    return tl.sum(total, 0)


@triton.jit
def last_sums(source, e, exist, shift, pairs, of_pair, outputs, acc_type: tl.constexpr):
    """Gradients of the last convolution's taps, from those with the shift of colours behind it."""
    if shift is None:
        total = sum_over(source, e, exist, pairs, of_pair, acc_type)
    else:
        k, total = e % outputs, tl.zeros(e.shape, acc_type)
        for other in range(outputs):
            share = tl.load(shift + other * outputs + k)
            total += share * sum_over(source, e - k + other, exist, pairs, of_pair, acc_type)
    return total


@triton.jit
def tail_after_sum_kernel(
    partials,  # (pointer to [tail, pair, M + 1, n],)
    grads,  # of each tail: of the last convolution's weight, or of a composed one
    shift,
    strides,
    blocks,
    pairs,
    features,
    outputs,
    factor: tl.constexpr,
    last: tl.constexpr,
    acc_type: tl.constexpr,
    block_e: tl.constexpr,
):
    taps: tl.constexpr = TAPS[factor // STAGE[factor]]
    size = taps * taps * outputs
    tail, e = element(blocks, block_e)
    of_pair = (features + 1) * size
    source = partials[0] + tail * pairs * of_pair
    target = of_branch(grads, tail)
    n, m = e % size, e // size
    exist = m <= features
    if last:
        total = last_sums(source, e, exist, shift, pairs, of_pair, outputs, acc_type)
        stride_k, stride_m, stride_y, stride_x = strides
        k, y, x = n % outputs, 2 - n // outputs % 3, 2 - n // (3 * outputs)
        place = k * stride_k + m * stride_m + y * stride_y + x * stride_x
        tl.store(target + place, total, mask=m < features)
    else:
        tl.store(target + e, sum_over(source, e, exist, pairs, of_pair, acc_type), mask=exist)


def compose_backward(
    grads: Tensors, stages: Stages, grad_out_biases: Biases
) -> tuple[Tensors, Tensors, Tensors]:
    """Gradients of weights, biases and ``afters`` from those of :func:`compose`'s results.

    Args:
        grad_out_biases: where the gradients of the last convolutions' biases are written to, of
            the first stages, whose ``shift`` is theirs.
    """
    weight, sizes = stages.weights[0], stages.sizes
    grad_products = weight.new_empty(stages.products_shape)
    tails, pairs, lines, size = grad_products.shape
    blocks = triton.cdiv(pairs * lines * size, BLOCK)
    launch(
        tail_products_grad_kernel,
        tails * blocks,
        *(tuple(grads), (grad_products,)),
        None if grad_out_biases is None else tuple(grad_out_biases),
        *(stages.shift, blocks, sizes[0], sizes[2]),
        factor=stages.factor,
        block_e=BLOCK,
    )
    grad_weights, grad_biases = _stage_grads(grad_products, stages)
    return grad_weights, grad_biases, _after_grads(grad_products, stages)


def _stage_grads(grad_products: Tensor, stages: Stages) -> tuple[Tensors, Tensors]:
    sizes, options = stages.sizes, stages.options
    tails, pairs, lines, _ = grad_products.shape
    grad_weights = [empty_images(weight, sizes[0]) for weight in stages.weights]
    grad_biases = [weight.new_empty(weight.shape[0]) for weight in stages.weights]
    blocks = triton.cdiv(lines, options["block_c"]) * triton.cdiv(sizes[1], options["block_m"])
    launch(
        tail_stage_grad_kernel,
        tails * pairs * blocks,
        *((grad_products,), tuple(stages.afters), tuple(grad_weights), tuple(grad_biases)),
        *(stages.shift, stages.afters[0].stride(), grad_weights[0].stride(), *sizes),
        last=stages.last,
        **options,
    )
    return grad_weights, grad_biases


def _after_grads(grad_products: Tensor, stages: Stages) -> Tensors:
    sizes, options = stages.sizes, stages.options
    tails, pairs, _, size = grad_products.shape
    lines = sizes[1] + 1
    partials = grad_products.new_empty(tails, pairs, lines, size)
    blocks = triton.cdiv(lines, options["block_m"]) * triton.cdiv(size, options["block_n"])
    parameters, strides = stages.parameters
    launch(
        tail_after_grad_kernel,
        tails * pairs * blocks,
        *(*parameters, grad_products, partials, *strides, *sizes),
        **options,
    )
    grads = [
        empty_images(after, sizes[1]) if stages.last else torch.empty_like(after)
        for after in stages.afters
    ]
    block_e = block(size, 64)
    blocks = triton.cdiv(lines * size, block_e)
    launch(
        tail_after_sum_kernel,
        tails * blocks,
        *((partials,), tuple(grads), stages.shift, grads[0].stride(), blocks, pairs, *sizes[1:]),
        factor=stages.factor,
        last=stages.last,
        acc_type=options["acc_type"],
        block_e=block_e,
    )
    return grads


def compose_all_backward(
    grads: Tensors, parameters: Parameters, factor: int
) -> tuple[list[Tensors], Tensors, Tensors]:
    """Gradients of each stage's weights and biases, and of the last ones, from those of the
    composed weights."""
    found: list[Tensors] = []
    outputs = grads[0].shape[3]
    grad_out_biases = [grad.new_empty(outputs) for grad in grads]
    all_stages = parameters.stages
    afters, _ = compose_all(parameters._replace(stages=all_stages[1:]), 2)
    unwritten: Biases = grad_out_biases
    for number, ((weights, biases), after) in enumerate(zip(all_stages, afters, strict=True)):
        last, own_factor = number + 1 == len(all_stages), factor if number == 0 else 2
        stages = Stages(weights, biases, after, own_factor, parameters.shift, last)
        *of_stages, grads = compose_backward(grads, stages, unwritten)
        found += of_stages
        unwritten = None
    return found, grads, grad_out_biases
