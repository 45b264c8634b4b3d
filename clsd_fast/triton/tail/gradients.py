"""Gradients of the composed weights of tails.

A program sums the products of one pixel around each of a group of pixels with the group's
gradients; a second launch adds the groups' partials in their order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import PROGRAMS, empty_statistic, launch
from .._rows import dot
from ..conv.images import of_branch, round_up
from .pixels import blocks_of, pixel_offsets, sizes_of, square_of, strides_of
from .taps import TAPS, WINDOW, blocks_of_kind, find_region, place_of, region_pixels

#: Pixels of a program that unshuffles.
PIXELS = 64
#: Elements, and groups at a time, of a program that adds partials.
BLOCK_E, BLOCK_G = 64, 16


@triton.jit
def turn_taps(composed, turned, number, channels, size, block_e: tl.constexpr):
    """Elements of block ``number``: of [C + 1, size] to [size, C]."""
    e = tl.cast(number, tl.int64) * block_e + tl.arange(0, block_e)
    c, place = e % channels, e // channels
    exist = place < size
    tl.store(turned + e, tl.load(composed + c * size + place, mask=exist, other=0), mask=exist)


@triton.jit
def tail_lay_out_kernel(
    grads,  # of each tail's output
    composed,  # of each tail: [C + 1, columns, rows, K]
    squares,  # [tail, N, H, W, width_n]
    turned,  # [tail, columns, rows, K, C]
    strides,
    stride_k,
    blocks,
    of_squares,
    slices,
    pixels,
    height,
    width,
    channels,
    outputs,
    width_n,
    factor: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    tail, number = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if number >= of_squares:
        size = TAPS[factor] * TAPS[factor] * outputs
        taps = turned + tl.cast(tail, tl.int64) * size * channels
        block_e: tl.constexpr = block_m * block_n
        turn_taps(of_branch(composed, tail), taps, number - of_squares, channels, size, block_e)
    else:
        n = number % slices * block_n + tl.arange(0, block_n)
        index = number // slices * block_m + tl.arange(0, block_m)
        k, i, j = square_of(n, outputs, factor)
        b, y, z = index // width // height, index // width % height, index % width
        place = k.to(tl.int64) * stride_k + i * strides[1] + j * strides[2]
        source = pixel_offsets(strides, b, y * factor, z * factor)[:, None] + place[None, :]
        inside = index < pixels
        exist = inside[:, None] & (j < factor)[None, :]
        value = tl.load(of_branch(grads, tail) + source, mask=exist, other=0)
        line = tl.cast(tail, tl.int64) * pixels + index
        target = squares + line[:, None] * width_n + n[None, :]
        tl.store(target, value, mask=inside[:, None] & (n >= 0)[None, :])


@triton.jit
def next_pixels(b, y, z, rows, columns, steps):
    """Image, row and column of pixels of a region so many of each further, and what is beyond the
    last row or column is carried: divisions take long."""
    step_b, step_y, step_z = steps
    z += step_z
    is_end = z >= columns
    z, y = tl.where(is_end, z - columns, z), y + step_y + is_end.to(tl.int32)
    is_end = y >= rows
    return b + step_b + is_end.to(tl.int32), tl.where(is_end, y - rows, y), z


@triton.jit
def load_column(images, pixels, c, exist, has_c, whole: tl.constexpr):
    """Channels of pixels, [c, pixel]."""
    exist = exist[:, None]
    if not whole:
        exist = exist & has_c[None, :]
    return tl.trans(tl.load(images + pixels[:, None] + c[None, :], mask=exist, other=0))


@triton.jit
def load_row(images, pixels, stride_z, z, width, c, exist, has_c, whole: tl.constexpr):
    """Channels of pixels and of the two on either side, each [c, pixel]; 0 where none is."""
    return (
        load_column(images, pixels - 2 * stride_z, c, exist & (z >= 2), has_c, whole),
        load_column(images, pixels - stride_z, c, exist & (z >= 1), has_c, whole),
        load_column(images, pixels, c, exist, has_c, whole),
        load_column(images, pixels + stride_z, c, exist & (z < width - 1), has_c, whole),
        load_column(images, pixels + 2 * stride_z, c, exist & (z < width - 2), has_c, whole),
    )


@triton.jit
def store_products(partials, total, place, c, channels, n, width_n):
    """total to [place, C + 1, width_n]."""
    line = tl.cast(place, tl.int64) * (channels + 1) + c
    targets = partials + line[:, None] * width_n + n[None, :]
    tl.store(targets, total, mask=(c < channels)[:, None] & (n >= 0)[None, :])


@triton.jit
def tail_weights_grad_kernel(
    xs,  # of each tail
    squares,  # [tail, N, H, W, width_n], as tail_lay_out_kernel leaves them
    partials,  # [tail, group, window, C + 1, width_n]; of the channel of 1, the middle one alone
    x_strides,
    groups,
    group_pixels,
    batch,
    height,
    width,
    channels,
    width_n,
    whole: tl.constexpr,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    # The rows of the window vary fastest: their programs read the same images.
    window_row, program = tl.program_id(0) % 5, tl.program_id(0) // 5
    slices, c_blocks = width_n // block_n, tl.cdiv(channels, block_c)
    n = program % slices * block_n + tl.arange(0, block_n)
    c_block, place = program // slices % c_blocks, program // slices // c_blocks
    tail, group = place // groups, place % groups
    c = c_block * block_c + tl.arange(0, block_c)
    top, rows, left, columns, number = find_region(group, group_pixels, batch, height, width, 1)
    first, m = number * group_pixels, tl.arange(0, block_m)
    last = tl.minimum(first + group_pixels, batch * rows * columns)
    b, y, z = region_pixels(first + m, 0, rows, 0, columns)
    steps = block_m // columns // rows, block_m // columns % rows, block_m % columns
    down, is_middle = window_row - 2, (window_row == 2) & (c_block == 0)
    x = of_branch(xs, tail) + tl.cast(down, tl.int64) * x_strides[1]
    grad = squares + tl.cast(tail, tl.int64) * batch * height * width * width_n
    total0, sums = tl.zeros([block_c, block_n], acc_type), tl.zeros([block_m, block_n], acc_type)
    total1, total2, total3, total4 = total0, total0, total0, total0
    for start in range(first, last, block_m):
        inside, row, column = start + m < last, top + y, left + z
        line = (b.to(tl.int64) * height + row) * width + column
        g = tl.load(grad + line[:, None] * width_n + n[None, :], mask=inside[:, None], other=0)
        exist = inside & (row >= -down) & (row < height - down)
        pixels = pixel_offsets(x_strides, b, row, column)
        # All of them before the first product: they arrive together.
        image0, image1, image2, image3, image4 = load_row(
            x, pixels, x_strides[2], column, width, c, exist, c < channels, whole
        )
        total0 = dot(image0, g, total0)
        total1 = dot(image1, g, total1)
        total2 = dot(image2, g, total2)
        total3 = dot(image3, g, total3)
        total4 = dot(image4, g, total4)
        if is_middle:
            sums += g.to(acc_type)
        b, y, z = next_pixels(b, y, z, rows, columns, steps)
    place = place * WINDOW + window_row * 5
    totals = total0, total1, total2, total3, total4
    for i in tl.static_range(5):
        store_products(partials, totals[i], place + i, c, channels, n, width_n)
    if is_middle:
        line = tl.cast(place + 2, tl.int64) * (channels + 1) + channels
        tl.store(partials + line * width_n + n, tl.sum(sums, 0))


@triton.jit
def exists_of_kind(kind, down, size):
    """Whether pixels of a kind have one so far down, at most one."""
    is_last = (kind == 2) | (size == 1)
    return (down >= tl.where(kind == 0, 0, -1)) & (down <= tl.where(is_last, 0, 1))


@triton.jit
def tail_composed_grad_kernel(
    partials,  # (pointer to [tail, group, window, C + 1, width_n],)
    grads,  # of each tail: [C + 1, columns, rows, K]
    blocks,
    groups,
    group_pixels,
    batch,
    height,
    width,
    channels,
    outputs,
    width_n,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_g: tl.constexpr,
    block_e: tl.constexpr,
):
    taps: tl.constexpr = TAPS[factor]
    tail = tl.program_id(0) // blocks
    e = tl.program_id(0) % blocks * block_e + tl.arange(0, block_e)
    k, y_tap, x_tap = e % outputs, e // outputs % taps, e // (outputs * taps) % taps
    c = e // (outputs * taps * taps)
    is_one = c == channels
    of_group = tl.cast(WINDOW, tl.int64) * ((channels + 1) * width_n)
    total = tl.zeros([block_g, block_e], acc_type)
    for row_kind in range(3):
        s, i = place_of(y_tap, row_kind, height, factor)
        has_row = exists_of_kind(row_kind, s - 2, height)
        for column_kind in range(3):
            t, j = place_of(x_tap, column_kind, width, factor)
            # The channel of 1 has the same products with every pixel that exists. Biases have no
            # taps further than to the next one, which all pixels of a kind have or have not.
            near = has_row & exists_of_kind(column_kind, t - 2, width)
            window = tl.where(is_one, WINDOW // 2, s * 5 + t)
            n = (j * factor + i) * outputs + k
            place = (window * (channels + 1) + c) * width_n + n
            exist = (c <= channels) & (i >= 0) & (j >= 0) & (near | (c < channels))
            first, number = blocks_of_kind(
                row_kind, column_kind, group_pixels, batch, height, width
            )
            source = partials[0] + (tail * groups + first) * of_group
            for start in range(0, number, block_g):
                group = start + tl.arange(0, block_g)
                lines = (group * of_group)[:, None] + place[None, :]
                mask = (group < number)[:, None] & exist[None, :]
                total += tl.load(source + lines, mask=mask, other=0)
    tl.store(of_branch(grads, tail) + e, tl.sum(total, 0), mask=c <= channels)


def lay_out(
    grads: Sequence[Tensor], composed: Sequence[Tensor], x: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """In the dtype of x: gradients of outputs as squares of x's pixels, [tail, N, H, W, width_n],
    padded with zeros, and composed taps with dense channels, [tail, taps, taps, K, C]."""
    batch, height, width, channels = sizes_of(x)
    taps, outputs = composed[0].shape[2:]
    factor, block_n, pixels = options["factor"], options["block_n"], batch * height * width
    slices = triton.cdiv(outputs * factor**2, block_n)
    squares = x.new_empty(len(grads), batch, height, width, slices * block_n)
    turned = x.new_empty(len(grads), taps, taps, outputs, channels)
    of_squares = triton.cdiv(pixels, PIXELS) * slices
    blocks = of_squares + triton.cdiv(turned[0].numel(), PIXELS * block_n)
    launch(
        tail_lay_out_kernel,
        len(grads) * blocks,
        *(tuple(grads), tuple(composed), squares, turned),
        *(strides_of(grads[0]), grads[0].stride(1), blocks, of_squares, slices),
        *(pixels, height, width, channels, outputs, slices * block_n),
        factor=factor,
        block_m=PIXELS,
        block_n=block_n,
    )
    return squares, turned


def composed_grads(
    xs: Sequence[Tensor], squares: Tensor, like: Tensor, options: dict[str, Any]
) -> list[Tensor]:
    """Of each tail's composed weight, like the given one, from images with dense channels and the
    squares of :func:`lay_out`."""
    sizes, width_n, x = sizes_of(xs[0]), squares.shape[-1], xs[0]
    pixels, channels, block_n = x.numel() // x.shape[1], x.shape[1], options["block_n"]
    # Of more pixels, the five products of a program would spill registers.
    block_m = min(options["block_m"], max(16, 1024 // block_n))
    options = {**options, "block_m": block_m, "num_stages": 2}
    tiles = triton.cdiv(channels, options["block_c"]) * (width_n // block_n)
    # The length of a group depends on the shape alone, so that sums are the same on every device.
    wanted = max(1, PROGRAMS // (tiles * WINDOW.value))
    group_pixels = max(round_up(triton.cdiv(pixels, wanted), block_m), block_m)
    groups = blocks_of(x, group_pixels, 1)
    partials = empty_statistic(x, len(xs), groups, WINDOW.value, channels + 1, width_n)
    launch(
        tail_weights_grad_kernel,
        len(xs) * groups * tiles * 5,
        *(tuple(xs), squares, partials, strides_of(x), groups, group_pixels, *sizes, width_n),
        whole=channels % options["block_c"] == 0,
        **{name: value for name, value in options.items() if name != "factor"},
    )
    found = [torch.empty_like(like) for _ in xs]
    blocks = triton.cdiv(like.numel(), BLOCK_E)
    launch(
        tail_composed_grad_kernel,
        len(xs) * blocks,
        *((partials,), tuple(found), blocks, groups, group_pixels, *sizes),
        *(like.shape[3], width_n),
        factor=options["factor"],
        acc_type=options["acc_type"],
        block_g=BLOCK_G,
        block_e=BLOCK_E,
    )
    return found
