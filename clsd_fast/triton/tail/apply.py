"""Applying the composed weight of a tail to images, and the gradients of both.

Seen from low resolution, a tail is a 5x5 convolution to the K * factor**2 numbers of an output
pixel's square, but one whose weights differ at the edges: there are 9 kinds of pixels. All their
weights are laid out for matrix products by a first launch. A block of pixels, one row of a product
each, is always of one kind (`find_region`), so that no border is a special case of a loop.

In kernels, b, y and z are image, row and column of pixels, ``window`` numbers the 5x5 pixels around
one, and n the K * factor**2 outputs, as F.pixel_unshuffle does. c and n are padded with zeros to
``width_c`` and ``width_n``.
"""

import triton
import triton.language as tl

from .._rows import dot
from .taps import (
    INNER,
    KINDS,
    TAPS,
    WINDOW,
    find_region,
    kind_of,
    place_of,
    region_pixels,
    tap_between,
)


@triton.jit
def pixels_of_block(number, block_m: tl.constexpr, batch, height, width, ends: tl.constexpr):
    """First row and column of the region of block ``number``; image, row and column of its pixels,
    and which of them exist."""
    top, rows, left, columns, number = find_region(number, block_m, batch, height, width, ends)
    index = number * block_m + tl.arange(0, block_m)
    b, y, z = region_pixels(index, top, rows, left, columns)
    return top, left, b, y, z, index < batch * rows * columns


@triton.jit
def pixel_pointers(images, b, y, z):
    pointer, stride_b, _, stride_y, stride_z = images
    rows = pointer + b.to(tl.int64) * stride_b + y.to(tl.int64) * stride_y
    return rows + z.to(tl.int64) * stride_z


@triton.jit
def load_near(images, pixels, y, z, down, right, exist, height, width, c, channels):
    """Channels c of the pixels so far down and right from others, [pixel, c]; 0 where none is."""
    _, _, stride_c, stride_y, stride_z = images
    exist = exist & (y >= -down) & (y < height - down) & (z >= -right) & (z < width - right)
    near = pixels + (tl.cast(down, tl.int64) * stride_y + tl.cast(right, tl.int64) * stride_z)
    pointers = near[:, None] + (c.to(tl.int64) * stride_c)[None, :]
    return tl.load(pointers, mask=exist[:, None] & (c < channels)[None, :], other=0)


@triton.jit
def tail_weights_kernel(
    composed,  # (pointer to [C + 1, columns, rows, K],)
    weights,  # [kind, window, width_c, width_n]
    ones,  # [kind, window, width_n]: those of the channel that is 1 everywhere
    height,
    width,
    channels,
    outputs,
    width_c,
    width_n,
    factor: tl.constexpr,
    block_e: tl.constexpr,
):
    taps: tl.constexpr = TAPS[factor]
    e = tl.program_id(0).to(tl.int64) * block_e + tl.arange(0, block_e)
    n, line = e % width_n, e // width_n
    k, i, j = n // (factor * factor), n // factor % factor, n % factor
    # The last of the lines of a window are the ones.
    place, to_c = line // (width_c + 1), line % (width_c + 1)
    kind, window = place // WINDOW, place % WINDOW
    c = tl.where(to_c == width_c, channels, tl.where(to_c < channels, to_c, channels + 1))
    exists = (kind < KINDS) & (c <= channels) & (k < outputs)
    total = tl.zeros([block_e], composed[0].dtype.element_ty)
    for row_choice in tl.static_range(3):
        y = tap_between(row_choice, kind // 3, height, window // 5, i, factor)
        for column_choice in tl.static_range(3):
            x = tap_between(column_choice, kind % 3, width, window % 5, j, factor)
            source = ((c * taps + x) * taps + y) * outputs + k
            total += tl.load(composed[0] + source, mask=exists & (x >= 0) & (y >= 0), other=0)
    target = (place * width_c + to_c) * width_n + n
    tl.store(weights + target, total, mask=(kind < KINDS) & (to_c < width_c))
    tl.store(ones + place * width_n + n, total, mask=(kind < KINDS) & (to_c == width_c))


@triton.jit
def tail_forward_kernel(
    x,
    weights,
    ones,
    out_bias,
    output,
    batch,
    height,
    width,
    channels,
    outputs,
    width_c,
    width_n,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    slices = width_n // block_n
    program = tl.program_id(0)
    n = program % slices * block_n + tl.arange(0, block_n)
    top, left, b, y, z, inside = pixels_of_block(
        program // slices, block_m, batch, height, width, 1
    )
    first = (kind_of(top, height) * 3 + kind_of(left, width)) * WINDOW
    pixels = pixel_pointers(x, b, y, z)
    total = tl.zeros([block_m, block_n], acc_type)
    blocks = width_c // block_c
    for step in range(blocks * WINDOW):
        window = step // blocks
        c = step % blocks * block_c + tl.arange(0, block_c)
        down, right = window // 5 - 2, window % 5 - 2
        tile = load_near(x, pixels, y, z, down, right, inside, height, width, c, channels)
        line = (first + window).to(tl.int64) * width_c + c
        total = dot(tile, tl.load(weights + line[:, None] * width_n + n[None, :]), total)
    # The biases of a pixel reach no further than its neighbours.
    for near in range(9):
        down, right = near // 3 - 1, near % 3 - 1
        exist = (y >= -down) & (y < height - down) & (z >= -right) & (z < width - right)
        bias = tl.load(ones + (first + down * 5 + right + WINDOW // 2) * width_n + n)
        total += tl.where(exist[:, None], bias[None, :], 0)
    k, i, j = n // (factor * factor), n // factor % factor, n % factor
    if out_bias is not None:
        bias = tl.load(out_bias[0] + k * out_bias[1], mask=k < outputs, other=0)
        total += bias[None, :]
    _, _, stride_k, stride_y, stride_z = output
    pixels = pixel_pointers(output, b, y * factor, z * factor)
    place = k.to(tl.int64) * stride_k + i * stride_y + j * stride_z
    exist = inside[:, None] & (k < outputs)[None, :]
    tl.store(pixels[:, None] + place[None, :], total, mask=exist)


@triton.jit
def tail_unshuffle_kernel(
    grad,
    unshuffled,  # [N, H, W, width_n]
    pixels,
    height,
    width,
    outputs,
    width_n,
    factor: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    slices = width_n // block_n
    program = tl.program_id(0)
    n = program % slices * block_n + tl.arange(0, block_n)
    index = program // slices * block_m + tl.arange(0, block_m)
    k, i, j = n // (factor * factor), n // factor % factor, n % factor
    b, y, z = index // width // height, index // width % height, index % width
    _, _, stride_k, stride_y, stride_z = grad
    pixel = pixel_pointers(grad, b, y * factor, z * factor)
    place = k.to(tl.int64) * stride_k + i * stride_y + j * stride_z
    exist = (index < pixels)[:, None] & (k < outputs)[None, :]
    value = tl.load(pixel[:, None] + place[None, :], mask=exist, other=0)
    pointers = unshuffled + index.to(tl.int64)[:, None] * width_n + n[None, :]
    tl.store(pointers, value, mask=(index < pixels)[:, None] & (n >= 0)[None, :])


@triton.jit
def tail_images_grad_kernel(
    grad,  # as tail_unshuffle_kernel leaves it
    weights,
    grad_x,
    batch,
    height,
    width,
    channels,
    width_c,
    width_n,
    factor: tl.constexpr,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    ends: tl.constexpr = 2 if INNER[factor] > 0 else 1
    slices = width_c // block_c
    program = tl.program_id(0)
    c = program % slices * block_c + tl.arange(0, block_c)
    top, left, b, y, z, inside = pixels_of_block(
        program // slices, block_m, batch, height, width, ends
    )
    pixels = pixel_pointers(grad, b, y, z)
    total = tl.zeros([block_m, block_c], acc_type)
    blocks = width_n // block_n
    for step in range(blocks * WINDOW):
        window = step // blocks
        down, right = 2 - window // 5, 2 - window % 5
        n = step % blocks * block_n + tl.arange(0, block_n)
        tile = load_near(grad, pixels, y, z, down, right, inside, height, width, n, width_n)
        # Other pixels of the middle than its first reach pixels of other kinds, but all of the
        # middle do so by taps that every kind has.
        kind = kind_of(top + down, height) * 3 + kind_of(left + right, width)
        line = (kind * WINDOW + window).to(tl.int64) * width_c + c
        total = dot(tile, tl.load(weights + line[None, :] * width_n + n[:, None]), total)
    pixels = pixel_pointers(grad_x, b, y, z)
    pointers = pixels[:, None] + (c.to(tl.int64) * grad_x[2])[None, :]
    tl.store(pointers, total, mask=inside[:, None] & (c < channels)[None, :])


@triton.jit
def products_near(total, grads, x, pixels, y, z, down, right, inside, height, width, c, channels):
    """total and the products of pixels so far from y, z with gradients of pixels, [c, n]."""
    tile = load_near(x, pixels, y, z, down, right, inside, height, width, c, channels)
    return dot(tl.trans(tile), grads, total)


@triton.jit
def store_products(partials, total, place, c, channels, n, width_n):
    """total to [place, C + 1, width_n]."""
    line = place.to(tl.int64) * (channels + 1) + c
    pointers = partials + line[:, None] * width_n + n[None, :]
    tl.store(pointers, total, mask=(c < channels)[:, None] & (n >= 0)[None, :])


@triton.jit
def tail_weights_grad_kernel(
    x,
    grad,  # as tail_unshuffle_kernel leaves it
    partials,  # [group, window, C + 1, width_n]; of the channel of 1, the window's middle alone
    group_pixels,
    batch,
    height,
    width,
    channels,
    width_n,
    acc_type: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
    block_n: tl.constexpr,
):
    slices, blocks = width_n // block_n, tl.cdiv(channels, block_c)
    # The rows of the window vary fastest: the programs read the same pixels.
    program = tl.program_id(0)
    window_row, number = program % 5, program // 5
    c_block, group = number // slices % blocks, number // slices // blocks
    n = number % slices * block_n + tl.arange(0, block_n)
    c = c_block * block_c + tl.arange(0, block_c)
    top, rows, left, columns, number = find_region(group, group_pixels, batch, height, width, 1)
    total0 = tl.zeros([block_c, block_n], acc_type)
    total1, total2, total3, total4 = total0, total0, total0, total0
    sums = tl.zeros([block_n], acc_type)
    down = window_row - 2
    first = number * group_pixels
    last = tl.minimum(first + group_pixels, batch * rows * columns)
    for start in range(first, last, block_m):
        index = start + tl.arange(0, block_m)
        b, y, z = region_pixels(index, top, rows, left, columns)
        inside = index < last
        pixels, grad_pixels = pixel_pointers(x, b, y, z), pixel_pointers(grad, b, y, z)
        g = tl.load(grad_pixels[:, None] + n[None, :], mask=inside[:, None], other=0)
        sums += tl.sum(g.to(acc_type), 0)
        total0 = products_near(
            total0, g, x, pixels, y, z, down, -2, inside, height, width, c, channels
        )
        total1 = products_near(
            total1, g, x, pixels, y, z, down, -1, inside, height, width, c, channels
        )
        total2 = products_near(
            total2, g, x, pixels, y, z, down, 0, inside, height, width, c, channels
        )
        total3 = products_near(
            total3, g, x, pixels, y, z, down, 1, inside, height, width, c, channels
        )
        total4 = products_near(
            total4, g, x, pixels, y, z, down, 2, inside, height, width, c, channels
        )
    place = group * WINDOW + window_row * 5
    store_products(partials, total0, place, c, channels, n, width_n)
    store_products(partials, total1, place + 1, c, channels, n, width_n)
    store_products(partials, total2, place + 2, c, channels, n, width_n)
    store_products(partials, total3, place + 3, c, channels, n, width_n)
    store_products(partials, total4, place + 4, c, channels, n, width_n)
    if (window_row == 2) & (c_block == 0):
        line = (place + 2).to(tl.int64) * (channels + 1) + channels
        tl.store(partials + line * width_n + n, sums)


@triton.jit
def tail_composed_grad_kernel(
    partials,  # (pointer to [group, window, C + 1, width_n],)
    grad,  # [C + 1, columns, rows, K]
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
    block_m: tl.constexpr,
    block_e: tl.constexpr,
):
    taps: tl.constexpr = TAPS[factor]
    e = tl.program_id(0) * block_e + tl.arange(0, block_e)
    k, y_tap, x_tap = e % outputs, e // outputs % taps, e // (outputs * taps) % taps
    c = e // (outputs * taps * taps)
    total = tl.zeros([block_m, block_e], acc_type)
    for start in range(0, groups, block_m):
        group = start + tl.arange(0, block_m)
        top, _, left, _, _ = find_region(group, group_pixels, batch, height, width, 1)
        s, i = place_of(y_tap[None, :], kind_of(top, height)[:, None], height, factor)
        t, j = place_of(x_tap[None, :], kind_of(left, width)[:, None], width, factor)
        # The channel of 1 has the same products with every pixel that exists. Biases have no taps
        # further than to the next one, which all pixels of a region have or have not.
        from_y, from_z = top[:, None] + s - 2, left[:, None] + t - 2
        near = (from_y >= 0) & (from_y < height) & (from_z >= 0) & (from_z < width)
        is_one = (c == channels)[None, :]
        window = tl.where(is_one, WINDOW // 2, s * 5 + t)
        line = ((group.to(tl.int64) * WINDOW)[:, None] + window) * (channels + 1) + c[None, :]
        n = (k[None, :] * factor + i) * factor + j
        exists = (group < groups)[:, None] & (c <= channels)[None, :] & (i >= 0) & (j >= 0)
        exists = exists & (near | (c < channels)[None, :])
        total += tl.load(partials[0] + line * width_n + n, mask=exists, other=0)
    tl.store(grad + e, tl.sum(total, 0), mask=c <= channels)
