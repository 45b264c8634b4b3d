"""Composing the weight of a tail, and the gradients of what it is composed of.

A stage and what follows it become one composed weight in two launches: the products of what a pixel
adds to the stage's map with all taps of what follows, and their sum over the ways from a pixel to a
tap. All is in the parameters' dtype, and summed in one order.

In kernels, c and m are channels of the stage's input and output, and one more that is 1 everywhere
(``reference/tail.py``). ``row`` and ``column`` are of the 3 * stage that a pixel reaches, ``pair``
numbers both. n numbers taps of what follows, by columns, rows and outputs K.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tail_axes import AXES, STAGES
from ...ops._images import empty_images
from ...reference.tail import Stages
from .._launch import acc_type, block, launch, split_program_2d, strided
from .._rows import dot
from .taps import STAGE, TAPS, tap_after, taps_through

#: Elements of a program that sums.
BLOCK = 256


@triton.jit
def stage_weights(weight, c, m, pair, channels, stage: tl.constexpr):
    """The weights by which a pixel reaches a row and a column of the next map, [c, m].

    Returns their output channels v, pointers to them, and which of c is the channel of 1, [c, 1]:
    a bias is added to what lies under the pixel itself.
    """
    pointer, stride_m, stride_c, stride_y, stride_x = weight
    row, column = pair // (3 * stage), pair % (3 * stage)
    y, x = 2 - row // stage, 2 - column // stage
    v = m.to(tl.int64) * (stage * stage) + row % stage * stage + column % stage
    pixel = pointer + y * stride_y + x * stride_x
    weights = pixel + (v * stride_m)[None, :] + (c.to(tl.int64) * stride_c)[:, None]
    one = tl.where((y == 1) & (x == 1), channels, -1)
    return v, weights, (c == one)[:, None]


@triton.jit
def added(weight, bias, c, m, pair, channels, features, stage: tl.constexpr):
    """What a pixel adds to a row and a column of the next map, [c, m]."""
    v, weights, is_one = stage_weights(weight, c, m, pair, channels, stage)
    total = tl.load(weights, mask=(c < channels)[:, None] & (m < features)[None, :], other=0)
    if bias is not None:
        biases = tl.load(bias[0] + v * bias[1], mask=m < features, other=0)
        total = tl.where(is_one, biases[None, :], total)
    return tl.where(is_one & (m == features)[None, :], 1, total)


@triton.jit
def following(after, m, n, features, outputs, factor: tl.constexpr, last: tl.constexpr):
    """Taps n of what follows on channels m, [m, n]: of the last convolution, or composed ones."""
    taps: tl.constexpr = TAPS[factor // STAGE[factor]]
    if last:
        pointer, stride_k, stride_m, stride_y, stride_x = after
        k, y, x = n % outputs, 2 - n // outputs % 3, 2 - n // (3 * outputs)
        place = k.to(tl.int64) * stride_k + y * stride_y + x * stride_x
        rows = m < features
    else:
        pointer, stride_m = after
        place = n
        rows = m <= features
    pointers = pointer + (m.to(tl.int64) * stride_m)[:, None] + place[None, :]
    mask = rows[:, None] & (n < taps * taps * outputs)[None, :]
    return tl.load(pointers, mask=mask, other=0)


@triton.jit
def tap_products(pointer, pair, rows, row, size, n):
    """Pointers to [row, n] of products [pair, rows, size]."""
    first = (pair * rows + row).to(tl.int64) * size
    return pointer + first[:, None] + n[None, :]


@triton.jit
def tail_products_kernel(
    weight,
    bias,
    after,
    products,  # [pair, C + 1, n]
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
    taps: tl.constexpr = TAPS[factor // STAGE[factor]]
    size = taps * taps * outputs
    pair, c, n = split_program_2d(channels + 1, size, block_c, block_n)
    total = tl.zeros([block_c, block_n], acc_type)
    for start in range(0, features + 1, block_m):
        m = start + tl.arange(0, block_m)
        responses = added(weight, bias, c, m, pair, channels, features, STAGE[factor])
        total = dot(responses, following(after, m, n, features, outputs, factor, last), total)
    exists = (c <= channels)[:, None] & (n < size)[None, :]
    tl.store(tap_products(products, pair, channels + 1, c, size, n), total, mask=exists)


@triton.jit
def tail_compose_kernel(
    products,  # [pair, C + 1, n]
    composed,  # (pointer to [C + 1, columns, rows, K],)
    channels,
    outputs,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_e: tl.constexpr,
):
    rows: tl.constexpr = 3 * STAGE[factor]
    taps: tl.constexpr = TAPS[factor]
    then: tl.constexpr = TAPS[factor // STAGE[factor]]
    e = tl.program_id(0).to(tl.int64) * block_e + tl.arange(0, block_e)
    k, y_tap, x_tap = e % outputs, e // outputs % taps, e // (outputs * taps) % taps
    c = e // (outputs * taps * taps)
    total = tl.zeros([block_e], acc_type)
    for row in range(rows):
        y, y_sign = tap_after(y_tap, row, factor)
        y_sign = tl.where(c <= channels, y_sign, 0)
        for column in range(rows):
            x, x_sign = tap_after(x_tap, column, factor)
            line = (row * rows + column) * (channels + 1) + c
            place = ((line * then + x) * then + y) * outputs + k
            sign = y_sign * x_sign
            total += sign * tl.load(products[0] + place, mask=sign != 0, other=0)
    tl.store(composed[0] + e, total, mask=c <= channels)


@triton.jit
def tail_products_grad_kernel(
    grad,  # (pointer to [C + 1, columns, rows, K],)
    grad_products,  # [pair, C + 1, n]
    channels,
    outputs,
    factor: tl.constexpr,
    block_e: tl.constexpr,
):
    rows: tl.constexpr = 3 * STAGE[factor]
    taps: tl.constexpr = TAPS[factor]
    then: tl.constexpr = TAPS[factor // STAGE[factor]]
    size = then * then * outputs
    e = tl.program_id(0).to(tl.int64) * block_e + tl.arange(0, block_e)
    n, line = e % size, e // size
    k, y, x = n % outputs, n // outputs % then, n // (outputs * then)
    c, pair = line % (channels + 1), line // (channels + 1)
    exists = pair < rows * rows
    y_tap, y_inside, y_edge, y_sign = taps_through(pair // rows, y, factor)
    x_tap, x_inside, x_edge, x_sign = taps_through(pair % rows, x, factor)
    first = grad[0] + c * (taps * taps * outputs) + k
    row, row_edge = y_tap * outputs, y_edge * outputs
    column, column_edge = x_tap * (taps * outputs), x_edge * (taps * outputs)
    x_edges, y_edges = exists & (x_sign != 0), exists & (y_sign != 0)
    total = tl.load(first + column + row, mask=exists & x_inside & y_inside, other=0)
    total += y_sign * tl.load(first + column + row_edge, mask=y_edges & x_inside, other=0)
    total += x_sign * tl.load(first + column_edge + row, mask=x_edges & y_inside, other=0)
    both = tl.load(first + column_edge + row_edge, mask=x_edges & y_edges, other=0)
    tl.store(grad_products[0] + e, total + x_sign * y_sign * both, mask=exists)


@triton.jit
def tail_stage_grad_kernel(
    grad_products,  # (pointer to [pair, C + 1, n],)
    after,
    grad_weight,
    grad_bias,
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
    pair, c, m = split_program_2d(channels + 1, features, block_c, block_m)
    total = tl.zeros([block_c, block_m], acc_type)
    for start in range(0, size, block_n):
        n = start + tl.arange(0, block_n)
        exists = (c <= channels)[:, None] & (n < size)[None, :]
        pointers = tap_products(grad_products[0], pair, channels + 1, c, size, n)
        grads = tl.load(pointers, mask=exists, other=0)
        afters = following(after, m, n, features, outputs, factor, last)
        total = dot(grads, tl.trans(afters), total)
    v, weights, is_one = stage_weights(grad_weight, c, m, pair, channels, stage)
    tl.store(weights, total, mask=(c < channels)[:, None] & (m < features)[None, :])
    is_bias = is_one & (m < features)[None, :]
    tl.store(grad_bias + v[None, :] + tl.zeros_like(c)[:, None], total, mask=is_bias)


@triton.jit
def tail_after_grad_kernel(
    weight,
    bias,
    grad_products,  # [pair, C + 1, n]
    partials,  # [pair, M + 1, n]
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
    pair, m, n = split_program_2d(features + 1, size, block_m, block_n)
    total = tl.zeros([block_m, block_n], acc_type)
    for start in range(0, channels + 1, block_c):
        c = start + tl.arange(0, block_c)
        responses = added(weight, bias, c, m, pair, channels, features, STAGE[factor])
        exists = (c <= channels)[:, None] & (n < size)[None, :]
        pointers = tap_products(grad_products, pair, channels + 1, c, size, n)
        total = dot(tl.trans(responses), tl.load(pointers, mask=exists, other=0), total)
    exists = (m <= features)[:, None] & (n < size)[None, :]
    tl.store(tap_products(partials, pair, features + 1, m, size, n), total, mask=exists)


@triton.jit
def tail_after_sum_kernel(
    partials,  # (pointer to [pair, M + 1, n],)
    grad,  # of the last convolution's weight, or of a composed one
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
    e = tl.program_id(0).to(tl.int64) * block_e + tl.arange(0, block_e)
    n, m = e % size, e // size
    total = tl.zeros([16, block_e], acc_type)
    for start in range(0, pairs, 16):
        pair = (start + tl.arange(0, 16))[:, None]
        place = pair * ((features + 1) * size) + e[None, :]
        exists = (pair < pairs) & (m <= features)[None, :]
        total += tl.load(partials[0] + place, mask=exists, other=0)
    total = tl.sum(total, 0)
    if last:
        pointer, stride_k, stride_m, stride_y, stride_x = grad
        k, y, x = n % outputs, 2 - n // outputs % 3, 2 - n // (3 * outputs)
        place = k * stride_k + m * stride_m + y * stride_y + x * stride_x
        tl.store(pointer + place, total, mask=m < features)
    else:
        tl.store(grad[0] + e, total, mask=m <= features)


def _options(like: Tensor, factor: int) -> dict[str, Any]:
    edge = 16 if like.dtype == torch.float64 else 32
    blocks = {"block_c": edge, "block_m": edge, "block_n": edge}
    return {"factor": factor, "acc_type": acc_type(like), **blocks}


def _after(after: Tensor, last: bool) -> tuple:
    return strided(after) if last else (after, after.stride(0))


def _sizes(weight: Tensor, after: Tensor, factor: int, last: bool) -> tuple[int, int, int]:
    """C, M and K."""
    features = weight.shape[0] // STAGES[factor][0] ** 2
    return weight.shape[1], features, after.shape[0] if last else after.shape[3]


def _products_shape(weight: Tensor, after: Tensor, factor: int, last: bool) -> tuple[int, int, int]:
    channels, _, outputs = _sizes(weight, after, factor, last)
    taps = 3 if last else after.shape[1]
    return (3 * STAGES[factor][0]) ** 2, channels + 1, taps**2 * outputs


def compose(weight: Tensor, bias: Tensor | None, after: Tensor, factor: int, last: bool) -> Tensor:
    """The composed weight [C + 1, taps, taps, K] of a convolution, pixel shuffle and what follows.

    Args:
        weight: [M * stage**2, C, 3, 3] of the convolution.
        bias: [M * stage**2] or None.
        after: the composed weight [M + 1, taps, taps, K] of what follows, or that of the last
            convolution, [K, M, 3, 3], itself.
        factor: what both scale by.
        last: which of the two ``after`` is.
    """
    channels, features, outputs = _sizes(weight, after, factor, last)
    products = weight.new_empty(_products_shape(weight, after, factor, last))
    options = _options(weight, factor)
    pairs, lines, size = products.shape
    launch(
        tail_products_kernel,
        pairs * triton.cdiv(lines, options["block_c"]) * triton.cdiv(size, options["block_n"]),
        strided(weight),
        strided(bias),
        _after(after, last),
        products,
        channels,
        features,
        outputs,
        last=last,
        **options,
    )
    taps = AXES[factor][0].size
    composed = weight.new_empty(channels + 1, taps, taps, outputs)
    launch(
        tail_compose_kernel,
        triton.cdiv(composed.numel(), BLOCK),
        (products,),
        (composed,),
        channels,
        outputs,
        factor=factor,
        acc_type=acc_type(weight),
        block_e=BLOCK,
    )
    return composed


def compose_backward(
    grad: Tensor, weight: Tensor, bias: Tensor | None, after: Tensor, factor: int, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and ``after`` from that of :func:`compose`'s result."""
    channels, features, outputs = _sizes(weight, after, factor, last)
    sizes = channels, features, outputs
    grad_products = weight.new_empty(_products_shape(weight, after, factor, last))
    launch(
        tail_products_grad_kernel,
        triton.cdiv(grad_products.numel(), BLOCK),
        (grad,),
        (grad_products,),
        channels,
        outputs,
        factor=factor,
        block_e=BLOCK,
    )
    options = _options(weight, factor)
    pairs, lines, size = grad_products.shape
    grad_weight, grad_bias = empty_images(weight, channels), weight.new_empty(weight.shape[0])
    launch(
        tail_stage_grad_kernel,
        pairs * triton.cdiv(lines, options["block_c"]) * triton.cdiv(features, options["block_m"]),
        (grad_products,),
        _after(after, last),
        strided(grad_weight),
        grad_bias,
        *sizes,
        last=last,
        **options,
    )
    partials = weight.new_empty(pairs, features + 1, size)
    blocks = triton.cdiv(features + 1, options["block_m"]) * triton.cdiv(size, options["block_n"])
    launch(
        tail_after_grad_kernel,
        pairs * blocks,
        strided(weight),
        strided(bias),
        grad_products,
        partials,
        *sizes,
        **options,
    )
    grad_after = empty_images(after, features) if last else torch.empty_like(after)
    launch(
        tail_after_sum_kernel,
        triton.cdiv((features + 1) * size, block(size, 64)),
        (partials,),
        strided(grad_after) if last else (grad_after,),
        pairs,
        features,
        outputs,
        factor=factor,
        last=last,
        acc_type=acc_type(weight),
        block_e=block(size, 64),
    )
    return grad_weight, grad_bias, grad_after


def compose_all(stages: Stages, out_weight: Tensor, factor: int) -> list[Tensor]:
    """The composed weights from each stage to the end, and that of the last convolution itself."""
    composed = [out_weight]
    for weight, bias in reversed(stages):
        last = len(composed) == 1
        own_factor = factor if len(composed) == len(stages) else 2
        composed.insert(0, compose(weight, bias, composed[0], own_factor, last))
    return composed


def compose_all_backward(
    grad: Tensor, stages: Stages, out_weight: Tensor, factor: int
) -> list[Tensor]:
    """Gradients of each weight and bias, and of the last weight, from that of the composed one."""
    grads: list[Tensor] = []
    afters = compose_all(stages[1:], out_weight, 2)
    for number, ((weight, bias), after) in enumerate(zip(stages, afters, strict=True)):
        last, own_factor = number + 1 == len(stages), factor if number == 0 else 2
        *parameters, grad = compose_backward(grad, weight, bias, after, own_factor, last)
        grads += parameters
    return [*grads, grad]
