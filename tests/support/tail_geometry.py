"""The index arithmetic of the tail's Triton kernels, as kernels that write it into tables.

Of a module of its own: it is imported when Triton is set to interpret.
"""

import triton
import triton.language as tl

from clsd_fast.triton.tail.taps import (
    blocks_of_kind,
    count_of,
    find_region,
    next_of,
    place_of,
    reaches_from,
    reaches_of,
    reaches_to,
    region_pixels,
    tap_after,
    taps_of,
    taps_through,
)


@triton.jit
def regions_kernel(
    pixels,  # [block, pixel of it, image, row, column], -1 where none is
    kinds,  # [kind of the rows, of the columns, (first block, number)]
    batch,
    height,
    width,
    ends: tl.constexpr,
    blocks: tl.constexpr,
    size: tl.constexpr,
):
    number = tl.arange(0, blocks)
    top, rows, left, columns, local = find_region(number, size, batch, height, width, ends)
    index = local[:, None] * size + tl.arange(0, size)[None, :]
    b, y, z = region_pixels(index, top[:, None], rows[:, None], left[:, None], columns[:, None])
    inside = index < batch * (rows * columns)[:, None]
    place = pixels + (number[:, None] * size + tl.arange(0, size)[None, :]) * 3
    tl.store(place, tl.where(inside, b, -1))
    tl.store(place + 1, y)
    tl.store(place + 2, z)
    for row_kind in range(3):
        for column_kind in range(3):
            first, count = blocks_of_kind(row_kind, column_kind, size, batch, height, width)
            tl.store(kinds + (row_kind * 3 + column_kind) * 2, first)
            tl.store(kinds + (row_kind * 3 + column_kind) * 2 + 1, count)


@triton.jit
def reaches_kernel(
    taps,  # [reach, i], -1 where there is none
    shifts,  # [reach]
    after,  # what comes after the last reach
    y,
    size,
    back: tl.constexpr,
    factor: tl.constexpr,
):
    """The reaches of output pixel y, or with ``back`` from input pixel y, one after another."""
    reaches = reaches_from(y, size, factor) if back else reaches_of(y, size, factor)
    i = tl.arange(0, 4)
    reach = 0
    for _ in range(count_of(reaches)):
        shift, first = taps_of(reach, factor)
        exist = (reaches_to(i, factor) >> reach) & 1
        tl.store(taps + reach * 4 + i, tl.where((i < factor) & (exist != 0), first + i, -1))
        tl.store(shifts + reach, shift)
        reach = next_of(reach, reaches)
    tl.store(after, reach)


@triton.jit
def places_kernel(
    places,  # [tap, (s, i)]
    kind,
    size,
    taps,
    factor: tl.constexpr,
):
    tap = tl.arange(0, 32)
    s, i = place_of(tap, kind, size, factor)
    tl.store(places + tap * 2, s, mask=tap < taps)
    tl.store(places + tap * 2 + 1, i, mask=tap < taps)


@triton.jit
def paths_kernel(
    forward,  # [row, tap, (tap after, sign)]
    backward,  # [row, tap after, (tap, whether, edge tap, sign)]
    row,
    taps,
    after_taps,
    factor: tl.constexpr,
):
    tap = tl.arange(0, 32)
    after, sign = tap_after(tap, row, factor)
    place = forward + (row * taps + tap) * 2
    tl.store(place, after, mask=tap < taps)
    tl.store(place + 1, sign, mask=tap < taps)
    main, inside, edge, edge_sign = taps_through(row, tap, factor)
    place = backward + (row * after_taps + tap) * 4
    tl.store(place, main, mask=tap < after_taps)
    tl.store(place + 1, inside, mask=tap < after_taps)
    tl.store(place + 2, edge, mask=tap < after_taps)
    tl.store(place + 3, edge_sign, mask=tap < after_taps)
