"""The index arithmetic of the tail's Triton kernels, as kernels that write it into tables.

Of a module of its own: it is imported when Triton is set to interpret.
"""

import triton
import triton.language as tl

from clsd_fast.triton.tail.taps import (
    find_region,
    kind_of,
    place_of,
    region_pixels,
    tap_after,
    tap_between,
    taps_through,
)


@triton.jit
def regions_kernel(
    pixels,  # [block, pixel of it, image, row, column], -1 where none is
    kinds,  # [block, kind of the rows, of the columns]
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
    tl.store(kinds + number * 2, kind_of(top, height))
    tl.store(kinds + number * 2 + 1, kind_of(left, width))


@triton.jit
def taps_kernel(
    between,  # [s, i, choice]
    places,  # [tap, (s, i)]
    kind,
    size,
    taps,
    factor: tl.constexpr,
):
    place = tl.arange(0, 32)
    for choice in tl.static_range(3):
        tap = tap_between(choice, kind, size, place // factor, place % factor, factor)
        tl.store(between + place * 3 + choice, tap, mask=place < 5 * factor)
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
