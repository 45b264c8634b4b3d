"""Applying the composed weight of a tail to images, and the gradient of these.

Seen from low resolution, a tail is a 5x5 convolution to the numbers of an output pixel's square,
but one with further taps at the edges. A block of pixels, one row of a product each, is always of
one kind (``find_region``): its program multiplies with the taps of one pair of reaches after
another, and no border is a special case of a loop. Taps are read where composing has left them.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._launch import launch
from .._rows import dot
from ..conv.convolve import of_all
from ..conv.images import of_branch
from .pixels import (
    blocks_of,
    ends_of,
    existing_near,
    load_near,
    pixel_offsets,
    pixels_of_block,
    sizes_of,
    square_of,
    strides_of,
)
from .taps import (
    INNER,
    TAPS,
    count_of,
    next_pair,
    reaches_from,
    reaches_of,
    reaches_to,
    taps_of,
)


@triton.jit
def square_taps(n, outputs, factor: tl.constexpr):
    """Where a reach's taps to the numbers of a square lie, from the one to its first; and by which
    reaches there are any, of rows and of columns. None leads beyond the square."""
    k, i, j = square_of(n, outputs, factor)
    place = (j * TAPS[factor] + i) * outputs + k
    exist = j < factor
    rows = tl.where(exist, reaches_to(i, factor), 0)
    return place, rows, tl.where(exist, reaches_to(j, factor), 0)


@triton.jit
def load_taps(
    turned,
    places,
    outputs,
    channels,
    by_rows,
    by_columns,
    row,
    column,
    has_c,
    whole: tl.constexpr,
    factor: tl.constexpr,
):
    """How far down and right a pair of reaches comes from, and its taps [n, c]."""
    down, y = taps_of(row, factor)
    right, x = taps_of(column, factor)
    first = tl.cast((x * TAPS[factor] + y) * outputs, tl.int64) * channels
    exist = (((by_rows >> row) & (by_columns >> column) & 1) != 0)[:, None]
    if not whole:
        exist = exist & has_c[None, :]
    return down, right, tl.load((turned + first) + places, mask=exist, other=0)


@triton.jit
def bias_taps(
    ones, place, outputs, by_rows, by_columns, row, column, top, left, sizes, factor: tl.constexpr
):
    """Taps [n] of the channel that is 1 everywhere, 0 where its pixel does not exist.

    They lead no further than to the next pixel, which all pixels of a region have or have not.
    """
    down, y = taps_of(row, factor)
    right, x = taps_of(column, factor)
    height, width = sizes
    exists = (top >= -down) & (top < height - down) & (left >= -right) & (left < width - right)
    exist = tl.where(exists, (by_rows >> row) & (by_columns >> column) & 1, 0) != 0
    first = ones + (x * TAPS[factor] + y) * outputs
    return tl.load(first + place, mask=exist, other=0)


@triton.jit
def shifted_bias(biases, stride, shift, tail, k, outputs, like):
    """What is added to outputs k: the last convolution's bias, with the shift of colours."""
    exist, total = k < outputs, tl.zeros_like(like)
    if shift is not None:
        weight, shift_bias = shift
        total += tl.load(shift_bias + k, mask=exist, other=0)
        if biases is not None:
            for other in range(outputs):
                bias = tl.load(of_branch(biases, tail) + other * stride)
                total += bias * tl.load(weight + k * outputs + other, mask=exist, other=0)
    elif biases is not None:
        total += tl.load(of_branch(biases, tail) + k * stride, mask=exist, other=0)
    return total


@triton.jit
def store_squares(
    image, total, b, y, z, n, inside, strides, stride_k, outputs, factor: tl.constexpr
):
    """Numbers n of the squares of pixels, to the image that they make up."""
    k, i, j = square_of(n, outputs, factor)
    pixels = pixel_offsets(strides, b, y * factor, z * factor)
    place = k.to(tl.int64) * stride_k + i * strides[1] + j * strides[2]
    exist = inside[:, None] & (j < factor)[None, :]
    tl.store(image + (pixels[:, None] + place[None, :]), total, mask=exist)


@triton.jit
def tail_forward_kernel(
    xs,  # of each tail
    composed,  # [C + 1, columns, rows, K]
    turned,  # [columns, rows, K, C] of the dtype of xs
    out_biases,  # or None
    images,
    shift,  # (weight, bias) or None
    x_strides,
    bias_stride,
    image_strides,
    stride_k,
    blocks,
    slices,
    batch,
    height,
    width,
    channels,
    outputs,
    whole: tl.constexpr,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    program, slice_n = tl.program_id(0) // slices, tl.program_id(0) % slices
    tail, number = program // blocks, program % blocks
    top, left, b, y, z, inside = pixels_of_block(number, block_m, batch, height, width, 1)
    near = existing_near(y, z, height, width, inside)
    pixels = pixel_offsets(x_strides, b, y, z)
    n, line = slice_n * block_n + tl.arange(0, block_n), tl.arange(0, block_c)
    place, by_rows, by_columns = square_taps(n, outputs, factor)
    places = (place * channels)[:, None] + line[None, :]
    rows, columns = reaches_of(top, height, factor), reaches_of(left, width, factor)
    x, taps = of_branch(xs, tail), of_branch(turned, tail)
    ones = of_branch(composed, tail)
    ones += tl.cast(channels, tl.int64) * (TAPS[factor] * TAPS[factor] * outputs)
    total, bias = tl.zeros([block_m, block_n], acc_type), tl.zeros([block_n], acc_type)
    for first in range(0, channels, block_c):
        row, column = 0, 0
        for _ in range(count_of(rows) * count_of(columns)):
            down, right, weight = load_taps(
                *(taps, places, outputs, channels, by_rows, by_columns, row, column),
                *(line < channels - first, whole, factor),
            )
            image = load_near(
                x, pixels, x_strides, near, down, right, line, channels - first, whole
            )
            total = dot(image, tl.trans(weight), total)
            if first == 0:
                bias += bias_taps(
                    *(ones, place, outputs, by_rows, by_columns, row, column),
                    *(top, left, (height, width), factor),
                )
            row, column = next_pair(row, column, rows, columns)
        x += block_c
        taps += block_c
    bias += shifted_bias(out_biases, bias_stride, shift, tail, n % outputs, outputs, bias)
    to_image = image_strides, stride_k, outputs, factor
    store_squares(of_branch(images, tail), total + bias[None, :], b, y, z, n, inside, *to_image)


@triton.jit
def tail_images_grad_kernel(
    squares,  # (pointer to [tail, N, H, W, width_n],), as tail_lay_out_kernel leaves them
    turned,  # (pointer to [tail, columns, rows, K, C],)
    grad_xs,  # of each tail
    x_strides,
    stride_c,
    blocks,
    slices,
    batch,
    height,
    width,
    channels,
    outputs,
    width_n,
    whole: tl.constexpr,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    ends: tl.constexpr = 2 if INNER[factor] > 0 else 1
    program, first_c = tl.program_id(0) // slices, tl.program_id(0) % slices * block_c
    tail, number = program // blocks, program % blocks
    top, left, b, y, z, inside = pixels_of_block(number, block_m, batch, height, width, ends)
    near = existing_near(y, z, height, width, inside)
    strides = (tl.cast(height, tl.int64) * width * width_n, width * width_n, width_n)
    pixels = pixel_offsets(strides, b, y, z)
    c, line = first_c + tl.arange(0, block_c), tl.arange(0, block_n)
    rows, columns = reaches_from(top, height, factor), reaches_from(left, width, factor)
    grad = squares[0] + tl.cast(tail, tl.int64) * batch * strides[0]
    size = TAPS[factor] * TAPS[factor] * outputs
    taps = turned[0] + tl.cast(tail, tl.int64) * size * channels
    total = tl.zeros([block_m, block_c], acc_type)
    for first in range(0, width_n, block_n):
        place, by_rows, by_columns = square_taps(first + line, outputs, factor)
        places = (place * channels)[:, None] + c[None, :]
        row, column = 0, 0
        for _ in range(count_of(rows) * count_of(columns)):
            down, right, weight = load_taps(
                *(taps, places, outputs, channels, by_rows, by_columns, row, column),
                *(c < channels, whole, factor),
            )
            square = load_near(grad, pixels, strides, near, -down, -right, line, block_n, True)
            total = dot(square, weight, total)
            row, column = next_pair(row, column, rows, columns)
        grad += block_n
    pixels = pixel_offsets(x_strides, b, y, z)
    targets = pixels[:, None] + (c.to(tl.int64) * stride_c)[None, :]
    exist = inside[:, None] & (c < channels)[None, :]
    tl.store(of_branch(grad_xs, tail) + targets, total, mask=exist)


def forward(
    xs: Sequence[Tensor],
    composed: Sequence[Tensor],
    turned: Sequence[Tensor],
    out_biases: Sequence[Tensor | None],
    images: Sequence[Tensor],
    shift: tuple[Tensor, Tensor] | None,
    options: dict[str, Any],
) -> None:
    """Apply each composed weight [C + 1, taps, taps, K], also given as [taps, taps, K, C] in the
    images' dtype, to its images, which have dense channels, and write [N, K, r H, r W]."""
    x, outputs, bias = xs[0], composed[0].shape[3], out_biases[0]
    slices = triton.cdiv(outputs * options["factor"] ** 2, options["block_n"])
    blocks = blocks_of(x, options["block_m"], 1)
    launch(
        tail_forward_kernel,
        len(xs) * blocks * slices,
        *(tuple(xs), tuple(composed), tuple(turned), of_all(out_biases), tuple(images), shift),
        strides_of(x),
        None if bias is None else bias.stride(0),
        strides_of(images[0]),
        images[0].stride(1),
        blocks,
        slices,
        *sizes_of(x),
        outputs,
        whole=x.shape[1] % options["block_c"] == 0,
        **options,
    )


def images_grad(
    squares: Tensor, turned: Tensor, grad_xs: Sequence[Tensor], options: dict[str, Any]
) -> None:
    """Write the gradients of each tail's images, from those of its output and from its taps, as
    ``gradients.lay_out`` returns them."""
    x, outputs = grad_xs[0], turned.shape[3]
    blocks = blocks_of(x, options["block_m"], ends_of(options["factor"]))
    slices = triton.cdiv(x.shape[1], options["block_c"])
    launch(
        tail_images_grad_kernel,
        len(grad_xs) * blocks * slices,
        *((squares,), (turned,), tuple(grad_xs), strides_of(x), x.stride(1), blocks, slices),
        *(*sizes_of(x), outputs, squares.shape[-1]),
        whole=x.shape[1] % options["block_c"] == 0,
        # Squares are small: copies that are under way gain more than the L1 cache does.
        **{**options, "num_stages": 3},
    )
