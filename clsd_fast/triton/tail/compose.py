"""Composing the weight of a tail.

A stage and what follows it become one composed weight in two launches, of all tails together: the
products of what a pixel adds to the stage's map with all taps of what follows, and their sum over
the ways from a pixel to a tap. All is in the parameters' dtype, and summed in one order.

In kernels, c and m are channels of the stage's input and output, and one more that is 1 everywhere
(``reference/tail.py``). ``row`` and ``column`` are of the 3 * stage that a pixel reaches, ``pair``
numbers both. n numbers taps of what follows, by columns, rows and outputs K.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tail_axes import AXES, STAGES
from .._launch import acc_type, launch, split_program_2d
from .._rows import dot
from ..conv.images import of_branch
from .taps import STAGE, TAPS, tap_after

#: Elements of a program that sums, one a thread: of two, Triton would exchange threads' elements
#: wherever it reads.
BLOCK = 128


@triton.jit
def stage_weights(weight, strides, c, m, pair, channels, stage: tl.constexpr):
    """The weights by which a pixel reaches a row and a column of the next map, [c, m].

    Returns their output channels v, pointers to them, and which of c is the channel of 1, [c, 1]:
    a bias is added to what lies under the pixel itself.
    """
    stride_m, stride_c, stride_y, stride_x = strides
    row, column = pair // (3 * stage), pair % (3 * stage)
    y, x = 2 - row // stage, 2 - column // stage
    v = m.to(tl.int64) * (stage * stage) + row % stage * stage + column % stage
    pixel = weight + y * stride_y + x * stride_x
    weights = pixel + (v * stride_m)[None, :] + (c.to(tl.int64) * stride_c)[:, None]
    one = tl.where((y == 1) & (x == 1), channels, -1)
    return v, weights, (c == one)[:, None]


@triton.jit
def added(
    weights, strides, biases, bias_stride, tail, c, m, pair, channels, features, stage: tl.constexpr
):
    """What a pixel adds to a row and a column of the next map, [c, m]."""
    weight = of_branch(weights, tail)
    v, weights, is_one = stage_weights(weight, strides, c, m, pair, channels, stage)
    total = tl.load(weights, mask=(c < channels)[:, None] & (m < features)[None, :], other=0)
    if biases is not None:
        bias = tl.load(of_branch(biases, tail) + v * bias_stride, mask=m < features, other=0)
        total = tl.where(is_one, bias[None, :], total)
    return tl.where(is_one & (m == features)[None, :], 1, total)


@triton.jit
def last_taps(after, strides, shift, m, k, tap, features, outputs, exist):
    """Of the last convolution, with the shift of colours behind it."""
    stride_k, stride_m, stride_y, stride_x = strides
    y, x = 2 - tap % 3, 2 - tap // 3
    place = (m.to(tl.int64) * stride_m)[:, None] + (y * stride_y + x * stride_x)[None, :]
    exist = exist & (m < features)[:, None]
    if shift is None:
        place += (k.to(tl.int64) * stride_k)[None, :]
        total = tl.load(after + place, mask=exist, other=0)
    else:
        total = tl.zeros(place.shape, after.dtype.element_ty)
        for other in range(outputs):
            share = tl.load(shift + k * outputs + other)
            total += share[None, :] * tl.load(after + other * stride_k + place, mask=exist, other=0)
    return total


@triton.jit
def following(
    afters,
    strides,
    shift,
    tail,
    m,
    n,
    k,
    tap,
    features,
    outputs,
    factor: tl.constexpr,
    last: tl.constexpr,
):
    """Taps n of what follows on channels m, [m, n]: of the last convolution, or composed ones; k
    are their outputs and ``tap`` counts those of an output."""
    taps: tl.constexpr = TAPS[factor // STAGE[factor]]
    after, exist = of_branch(afters, tail), (n < taps * taps * outputs)[None, :]
    if last:
        total = last_taps(after, strides, shift, m, k, tap, features, outputs, exist)
    else:
        pointers = after + (m.to(tl.int64) * strides[0])[:, None] + n[None, :]
        total = tl.load(pointers, mask=(m <= features)[:, None] & exist, other=0)
    return total


@triton.jit
def tail_and_pair(place, factor: tl.constexpr):
    pairs: tl.constexpr = 9 * STAGE[factor] * STAGE[factor]
    return place // pairs, place % pairs


@triton.jit
def tap_products(pointer, pair, rows, row, size, n):
    """Pointers to [row, n] of products [pair, rows, size]."""
    first = (pair * rows + row).to(tl.int64) * size
    return pointer + first[:, None] + n[None, :]


@triton.jit
def tail_products_kernel(
    weights,  # of each tail
    biases,  # or None
    afters,
    products,  # [tail, pair, C + 1, n]
    shift,  # of what is last, or None
    weight_strides,
    bias_stride,
    after_strides,
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
    place, c, n = split_program_2d(channels + 1, size, block_c, block_n)
    tail, pair = tail_and_pair(place, factor)
    total = tl.zeros([block_c, block_n], acc_type)
    for start in range(0, features + 1, block_m):
        m = start + tl.arange(0, block_m)
        responses = added(
            *(weights, weight_strides, biases, bias_stride, tail),
            *(c, m, pair, channels, features, STAGE[factor]),
        )
        after = following(
            *(afters, after_strides, shift, tail, m, n, n % outputs, n // outputs),
            *(features, outputs, factor, last),
        )
        total = dot(responses, after, total)
    exists = (c <= channels)[:, None] & (n < size)[None, :]
    tl.store(tap_products(products, place, channels + 1, c, size, n), total, mask=exists)


@triton.jit
def element(blocks, block_e: tl.constexpr):
    """The tail and the elements of this program, of so many programs a tail."""
    tail, number = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    return tail.to(tl.int64), number.to(tl.int64) * block_e + tl.arange(0, block_e)


@triton.jit
def tail_compose_kernel(
    products,  # (pointer to [tail, pair, C + 1, n],)
    composed,  # of each tail: [C + 1, columns, rows, K]
    turned,  # the same as [columns, rows, K, C], or None
    blocks,
    channels,
    outputs,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_e: tl.constexpr,
):
    rows: tl.constexpr = 3 * STAGE[factor]
    taps: tl.constexpr = TAPS[factor]
    then: tl.constexpr = TAPS[factor // STAGE[factor]]
    tail, e = element(blocks, block_e)
    k, y_tap, x_tap = e % outputs, e // outputs % taps, e // (outputs * taps) % taps
    c = e // (outputs * taps * taps)
    source = products[0] + tail * (rows * rows) * (channels + 1) * (then * then * outputs)
    total = tl.zeros([block_e], acc_type)
    for row in range(rows):
        y, y_sign = tap_after(y_tap, row, factor)
        y_sign = tl.where(c <= channels, y_sign, 0)
        for column in range(rows):
            x, x_sign = tap_after(x_tap, column, factor)
            line = (row * rows + column) * (channels + 1) + c
            place = ((line * then + x) * then + y) * outputs + k
            sign = y_sign * x_sign
            total += sign * tl.load(source + place, mask=sign != 0, other=0)
    tl.store(of_branch(composed, tail) + e, total, mask=c <= channels)
    if turned is not None:
        place = e % (taps * taps * outputs) * channels + c
        tl.store(of_branch(turned, tail) + place, total, mask=c < channels)


Tensors = list[Tensor]
#: Of each tail; None where none has any.
Biases = list[Tensor] | None


class Stages(NamedTuple):
    """One stage of each tail, and what follows it; tensors of a kind lie alike.

    Args:
        weights: [M * stage**2, C, 3, 3] of the convolutions.
        biases: [M * stage**2].
        afters: the composed weights [M + 1, taps, taps, K] of what follows, or those of the last
            convolutions, [K, M, 3, 3], themselves.
        factor: what both scale by.
        shift: the weight [K, K] that what is last is multiplied with, or None.
        last: which of the two ``afters`` are.
    """

    weights: Tensors
    biases: Biases
    afters: Tensors
    factor: int
    shift: Tensor | None
    last: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """C, M and K."""
        weight, after = self.weights[0], self.afters[0]
        features = weight.shape[0] // STAGES[self.factor][0] ** 2
        return weight.shape[1], features, after.shape[0] if self.last else after.shape[3]

    @property
    def products_shape(self) -> tuple[int, int, int, int]:
        """Tails, pairs of rows and columns, C + 1 and the taps of what follows by K."""
        channels, _, outputs = self.sizes
        taps = 3 if self.last else self.afters[0].shape[1]
        pairs = (3 * STAGES[self.factor][0]) ** 2
        return len(self.weights), pairs, channels + 1, taps**2 * outputs

    @property
    def options(self) -> dict[str, Any]:
        """Of kernels that multiply matrices."""
        return _options(self.weights[0], self.factor)

    @property
    def parameters(self) -> tuple:
        """Weights and biases as arguments of kernels, and their strides."""
        biases = None if self.biases is None else tuple(self.biases)
        stride = None if self.biases is None else self.biases[0].stride(0)
        return (tuple(self.weights), biases), (self.weights[0].stride(), stride)


def _options(like: Tensor, factor: int) -> dict[str, Any]:
    edge = 16 if like.dtype == torch.float64 else 32
    blocks = {"block_c": edge, "block_m": edge, "block_n": edge}
    return {"factor": factor, "acc_type": acc_type(like), **blocks}


def compose(stages: Stages, dtype: torch.dtype | None) -> tuple[Tensors, Tensors]:
    """The composed weights [C + 1, taps, taps, K] of convolutions, pixel shuffles and what follows
    them; and their taps with dense channels, [taps, taps, K, C], if they have a dtype."""
    weight, options = stages.weights[0], stages.options
    channels, features, outputs = stages.sizes
    products = weight.new_empty(stages.products_shape)
    tails, pairs, lines, size = products.shape
    blocks = triton.cdiv(lines, options["block_c"]) * triton.cdiv(size, options["block_n"])
    parameters, strides = stages.parameters
    launch(
        tail_products_kernel,
        tails * pairs * blocks,
        *(*parameters, tuple(stages.afters), products, stages.shift),
        *(*strides, stages.afters[0].stride(), channels, features, outputs),
        last=stages.last,
        **options,
    )
    taps = AXES[stages.factor][0].size
    composed = [weight.new_empty(channels + 1, taps, taps, outputs) for _ in stages.weights]
    shape = taps, taps, outputs, channels
    turned = [weight.new_empty(shape, dtype=dtype) for _ in stages.weights if dtype]
    blocks = triton.cdiv(composed[0].numel(), BLOCK)
    launch(
        tail_compose_kernel,
        tails * blocks,
        *((products,), tuple(composed), tuple(turned) or None, blocks, channels, outputs),
        factor=stages.factor,
        acc_type=acc_type(weight),
        block_e=BLOCK,
    )
    return composed, turned


class Parameters(NamedTuple):
    """Of tails that are alike but for their tensors.

    Args:
        stages: weights and biases of all tails, of each stage.
        out_weights: of the last convolutions.
        shift: the weight [K, K] that these are multiplied with, or None.
    """

    stages: list[tuple[Tensors, Biases]]
    out_weights: Tensors
    shift: Tensor | None


def compose_all(
    parameters: Parameters, factor: int, dtype: torch.dtype | None = None
) -> tuple[list[Tensors], Tensors]:
    """The composed weights from each stage to the end, and those of the last convolutions
    themselves; and those of the first stage in a dtype, if one is given, as :func:`compose`."""
    composed, turned = [parameters.out_weights], list[Tensor]()
    for weights, biases in reversed(parameters.stages):
        last, is_first = len(composed) == 1, len(composed) == len(parameters.stages)
        own_factor = factor if is_first else 2
        stages = Stages(weights, biases, composed[0], own_factor, parameters.shift, last)
        found, turned = compose(stages, dtype if is_first else None)
        composed.insert(0, found)
    return composed, turned
