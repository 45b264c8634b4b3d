"""The rows and columns of a composed tail in kernels: ``_tail_axes.py`` as arithmetic.

Tables in memory would be copied to each device and kept there; kernels compute their indices. What
is here for rows holds for columns. In kernels, ``factor`` says which axis: 2, 3 or 4 is that of the
whole tail, or of the second stage for 4, and 1 is that of the last convolution alone.

An output pixel ``factor * y + i`` depends on the input pixels ``y + s - 2`` for s from 0 to 4.
Along an axis, the pixels y are of three kinds: 0 is the first, 1 has others on both sides, 2 is the
last. An axis of one pixel has kind 0, and the taps of both ends.
"""

import triton
import triton.language as tl

from ..._tail_axes import AXES, OUT_CONV, STAGES, Axis

#: Pixels y + s - 2 that an output pixel depends on, over both axes.
WINDOW = tl.constexpr(25)
#: The ways from an input pixel to an output pixel: by a tap of every pixel from the five around it,
#: and by taps at the edges: outer and inner ones at the start, and as many at the end.
REACHES = tl.constexpr(9)
_EVERY = tl.constexpr(0b11111 | 1 << 9)

_AXES = {1: OUT_CONV, **{factor: axes[0] for factor, axes in AXES.items()}}


def _edge_taps(axis: Axis, edge: int) -> int:
    return sum(segment.length for segment in axis.segments if segment.edge == edge)


def _by_factor(numbers: dict[int, int]) -> tl.constexpr:
    return tl.constexpr(tuple(numbers.get(factor, 0) for factor in range(5)))


#: By factor: the taps of every pixel, all taps, and where the first of them leads to.
MAIN = _by_factor({factor: axis.segments[0].length for factor, axis in _AXES.items()})
TAPS = _by_factor({factor: axis.size for factor, axis in _AXES.items()})
PADDING = _by_factor({factor: axis.padding for factor, axis in _AXES.items()})
#: Taps of the first pixel alone, and of the second; as many of the last and of the one before.
OUTER = _by_factor({factor: _edge_taps(axis, 0) for factor, axis in _AXES.items()})
INNER = _by_factor({factor: _edge_taps(axis, 1) for factor, axis in _AXES.items()})
#: What the first stage shuffles by.
STAGE = _by_factor({factor: stages[0] for factor, stages in STAGES.items()})


@triton.jit
def region_blocks(block, batch, height, width, ends: tl.constexpr):
    """Into how many blocks of so many pixels regions are cut: the middle, one of a row's, of a
    column's and of a corner's.

    The ``ends`` first and last pixels of an axis are parts of it of their own, the others are one.
    A region is a part of the rows by one of the columns, of all images. Each is cut into blocks of
    its own, so that all pixels of a block have the same taps.
    """
    rows, columns = tl.maximum(height - 2 * ends, 0), tl.maximum(width - 2 * ends, 0)
    in_middle = tl.cdiv(batch * rows * columns, block)
    in_row, in_column = tl.cdiv(batch * columns, block), tl.cdiv(batch * rows, block)
    return in_middle, in_row, in_column, tl.cdiv(batch, block)


@triton.jit
def find_region(number, block, batch, height, width, ends: tl.constexpr):
    """Where block ``number`` of :func:`region_blocks` is: those of the middle come first, then
    those of rows, of columns and of corners.

    Returns the first row and the number of rows, the first column and the number of columns, and
    the number of the block in the region.
    """
    row_edges, column_edges = tl.minimum(height, 2 * ends), tl.minimum(width, 2 * ends)
    rows, columns = height - row_edges, width - column_edges
    in_middle, in_row, in_column, in_corner = region_blocks(block, batch, height, width, ends)
    after_middle = number - in_middle
    after_rows = after_middle - row_edges * in_row
    corner = after_rows - column_edges * in_column
    is_row = (after_middle >= 0) & (after_rows < 0)
    is_column = (after_rows >= 0) & (corner < 0)
    # 1 in place of 0 to divide by.
    in_row, in_column = tl.maximum(in_row, 1), tl.maximum(in_column, 1)
    in_corner = tl.maximum(in_corner, 1)
    row_edge = tl.where(is_row, after_middle // in_row, corner // in_corner // column_edges)
    column_edge = tl.where(is_column, after_rows // in_column, corner // in_corner % column_edges)
    local = tl.where(is_row, after_middle % in_row, corner % in_corner)
    local = tl.where(is_column, after_rows % in_column, local)
    local = tl.where(after_middle < 0, number, local)
    row = tl.where(row_edge < ends, row_edge, rows + row_edge)
    column = tl.where(column_edge < ends, column_edge, columns + column_edge)
    all_rows, all_columns = (after_middle < 0) | is_column, (after_middle < 0) | is_row
    return (
        tl.where(all_rows, ends, row),
        tl.where(all_rows, rows, 1),
        tl.where(all_columns, ends, column),
        tl.where(all_columns, columns, 1),
        local,
    )


@triton.jit
def blocks_of_kind(row_kind, column_kind, block, batch, height, width):
    """The first block of the pixels of a kind, as :func:`find_region` numbers them with one pixel
    of its own at each end, and how many there are."""
    in_middle, in_row, in_column, in_corner = region_blocks(block, batch, height, width, 1)
    row_edges, column_edges = tl.minimum(height, 2), tl.minimum(width, 2)
    after_rows = in_middle + row_edges * in_row
    after_columns = after_rows + column_edges * in_column
    row_edge, column_edge = row_kind // 2, column_kind // 2
    is_row, is_column = row_kind != 1, column_kind != 1
    of_corner = after_columns + (row_edge * column_edges + column_edge) * in_corner
    of_row, of_column = in_middle + row_edge * in_row, after_rows + column_edge * in_column
    first = tl.where(is_row, tl.where(is_column, of_corner, of_row), of_column)
    number = tl.where(is_row, tl.where(is_column, in_corner, in_row), in_column)
    exists = (row_edge < row_edges) & (column_edge < column_edges)
    is_middle = (row_kind == 1) & (column_kind == 1)
    first, number = tl.where(is_middle, 0, first), tl.where(is_middle, in_middle, number)
    return first, tl.where(exists, number, 0)


@triton.jit
def region_pixels(index, top, rows, left, columns):
    """Image, row and column of pixels number ``index`` of a region."""
    row = index // columns
    return row // rows, top + row % rows, left + index % columns


@triton.jit
def reaches_of(y, size, factor: tl.constexpr):
    """The reaches of output pixels y, as bits; bit ``REACHES`` ends them."""
    inner: tl.constexpr = INNER[factor]
    start: tl.constexpr = (1 << 5 | 1 << 6) if inner > 0 else 1 << 5
    end: tl.constexpr = (1 << 7 | 1 << 8) if inner > 0 else 1 << 7
    found = tl.where(y == 0, _EVERY | start, _EVERY)
    return found | tl.where(y == size - 1, end, 0)


@triton.jit
def reaches_from(y, size, factor: tl.constexpr):
    """Those that lead from input pixels y."""
    found = tl.where(y == 0, _EVERY | 1 << 5, _EVERY) | tl.where(y == size - 1, 1 << 7, 0)
    if INNER[factor] > 0:
        found = found | tl.where(y == 1, 1 << 6, 0) | tl.where(y == size - 2, 1 << 8, 0)
    return found


@triton.jit
def count_of(reaches):
    """How many reaches there are, of which the first five are never missing."""
    number = 5
    for reach in tl.static_range(5, 9):
        number += (reaches >> reach) & 1
    return number


@triton.jit
def next_of(reach, reaches):
    """The reach after one, ``REACHES`` after the last."""
    reach += 1
    for _ in tl.static_range(4):
        reach += 1 - ((reaches >> reach) & 1)
    return reach


@triton.jit
def next_pair(row, column, rows, columns):
    """The pair of reaches after one, of rows by columns."""
    column = next_of(column, columns)
    is_end = column == REACHES
    return tl.where(is_end, next_of(row, rows), row), tl.where(is_end, 0, column)


@triton.jit
def taps_of(reach, factor: tl.constexpr):
    """How far an input pixel is from the output pixel, and the tap to row 0 of the latter's square.

    Which other rows a reach leads to: :func:`reaches_to`.
    """
    outer: tl.constexpr = OUTER[factor]
    inner: tl.constexpr = INNER[factor]
    shift = tl.where(reach < 5, reach - 2, tl.where(reach == 6, 1, tl.where(reach == 8, -1, 0)))
    at_start = MAIN[factor] + tl.where(reach == 6, 2 * outer, 0)
    at_end = MAIN[factor] + 2 * outer - factor + tl.where(reach == 8, 2 * inner, 0)
    at_edge = tl.where(reach < 7, at_start, at_end)
    return shift, tl.where(reach < 5, PADDING[factor] - factor * shift, at_edge)


@triton.jit
def reaches_to(i, factor: tl.constexpr):
    """The reaches that have a tap to rows i of a square, as bits."""
    outer: tl.constexpr = OUTER[factor]
    inner: tl.constexpr = INNER[factor]
    found = ((i < outer).to(tl.int32) << 5) | ((i < inner).to(tl.int32) << 6)
    found |= ((i >= factor - outer).to(tl.int32) << 7) | ((i >= factor - inner).to(tl.int32) << 8)
    for reach in tl.static_range(5):
        tap = factor * (2 - reach) + PADDING[factor] + i
        found |= ((tap >= 0) & (tap < MAIN[factor])).to(tl.int32) << reach
    return found


@triton.jit
def place_of(tap, kind, size, factor: tl.constexpr):
    """s and i of a tap to pixels of a kind; i is -1 if they have it not."""
    main: tl.constexpr = MAIN[factor]
    outer: tl.constexpr = OUTER[factor]
    inner: tl.constexpr = INNER[factor]
    shifted = tap - PADDING[factor] + 2 * factor
    s, i = 4 - shifted // factor, shifted % factor
    at_edge = tap - main
    at_end = (at_edge >= outer) & (at_edge < 2 * outer) | (at_edge >= 2 * outer + inner)
    is_outer = at_edge < 2 * outer
    # Outer taps are those of the first and of the last pixel, inner ones of their neighbours.
    after_start = tl.where(is_outer, at_edge, at_edge - 2 * outer)
    before_end = tl.where(is_outer, 2 * outer, 2 * outer + 2 * inner) - 1 - at_edge
    edge_i = tl.where(at_end, factor - 1 - before_end, after_start)
    edge_s = tl.where(is_outer, 2, tl.where(at_end, 1, 3))
    has_edge = tl.where(at_end, (kind == 2) | (size == 1), kind == 0)
    edge_i = tl.where(has_edge, edge_i, -1)
    return tl.where(tap < main, s, edge_s), tl.where(tap < main, i, edge_i)


@triton.jit
def tap_after(tap, row, factor: tl.constexpr):
    """The tap of what follows the first stage that leads from row ``row`` of its map to ``tap``.

    Rows are the 3 * stage that an input pixel reaches. The second result is the sign, 0 for none.
    """
    stage: tl.constexpr = STAGE[factor]
    after: tl.constexpr = factor // stage
    main: tl.constexpr = MAIN[factor]
    outer: tl.constexpr = OUTER[factor]
    then: tl.constexpr = MAIN[after]
    result = tap - after * row
    sign = ((tap < main) & (result >= 0) & (result < then)).to(tl.int32)
    # Paths of the first pixel through rows before the first are taken off, and at the end alike.
    place = tap - main
    beyond = place - after * (row - stage) + PADDING[after]
    taken = (place >= 0) & (place < outer) & (row < stage) & (beyond < then)
    result, sign = tl.where(taken, beyond, result), tl.where(taken, -1, sign)
    place = main + 2 * outer - 1 - tap
    beyond = place + after * (row + 1 - 2 * stage) + PADDING[after]
    taken = (place >= 0) & (place < outer) & (row >= 2 * stage) & (beyond < then)
    result, sign = tl.where(taken, then - 1 - beyond, result), tl.where(taken, -1, sign)
    if OUTER[after] > 0:
        # What follows has a tap of its first row alone, which pixels 0 and 1 reach; its last alike.
        first = ((row == stage) & (tap == main)) | ((row == 0) & (tap == main + 2 * outer))
        result, sign = tl.where(first, then, result), tl.where(first, 1, sign)
        last = (row == 2 * stage - 1) & (tap == main + 2 * outer - 1)
        last = last | ((row == 3 * stage - 1) & (tap == main + 2 * outer + 1))
        result, sign = tl.where(last, then + 1, result), tl.where(last, 1, sign)
    return result, sign


@triton.jit
def taps_through(row, after_tap, factor: tl.constexpr):
    """The taps to which :func:`tap_after` gives ``after_tap``: one of every pixel, one at an edge.

    Returns the first and whether there is one, the second and its sign, 0 for none.
    """
    stage: tl.constexpr = STAGE[factor]
    after: tl.constexpr = factor // stage
    main: tl.constexpr = MAIN[factor]
    outer: tl.constexpr = OUTER[factor]
    then: tl.constexpr = MAIN[after]
    inside = after_tap < then
    at_start = after_tap + after * (row - stage) - PADDING[after]
    at_end = then - 1 - after_tap + after * (2 * stage - 1 - row) - PADDING[after]
    starts = inside & (row < stage) & (at_start >= 0)
    ends = inside & (row >= 2 * stage) & (at_end >= 0)
    edge_tap = main + tl.where(starts, at_start, 2 * outer - 1 - at_end)
    sign = tl.where(starts | ends, -1, 0)
    if OUTER[after] > 0:
        first = (after_tap == then) & ((row == stage) | (row == 0))
        edge_tap = tl.where(first, main + tl.where(row == 0, 2 * outer, 0), edge_tap)
        last = (after_tap == then + 1) & ((row == 2 * stage - 1) | (row == 3 * stage - 1))
        at_last = main + 2 * outer + tl.where(row == 3 * stage - 1, 1, -1)
        edge_tap, sign = tl.where(last, at_last, edge_tap), tl.where(first | last, 1, sign)
    return after * row + after_tap, inside, edge_tap, sign
