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
KINDS = tl.constexpr(9)

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
def find_region(number, block, batch, height, width, ends: tl.constexpr):
    """Where block ``number`` of so many pixels is: its region's rows and columns, and which there.

    The ``ends`` first and last pixels of an axis are parts of it of their own, the others are one.
    A region is a part of the rows by one of the columns, of all images. Each is cut into blocks of
    its own, so that all pixels of a block have the same taps.

    Returns the first row and the number of rows, the first column and the number of columns, and
    the number of the block in the region.
    """
    row_edges, column_edges = tl.minimum(height, 2 * ends), tl.minimum(width, 2 * ends)
    rows, columns = height - row_edges, width - column_edges
    # Blocks of the middle, of a row, of a column and of a corner; 1 in place of 0 to divide by.
    in_middle = tl.cdiv(batch * rows * columns, block)
    in_row = tl.cdiv(batch * columns, block)
    in_column = tl.cdiv(batch * rows, block)
    in_corner = tl.maximum(tl.cdiv(batch, block), 1)
    after_middle = number - in_middle
    after_rows = after_middle - row_edges * in_row
    corner = after_rows - column_edges * in_column
    is_row = (after_middle >= 0) & (after_rows < 0)
    is_column = (after_rows >= 0) & (corner < 0)
    in_row, in_column = tl.maximum(in_row, 1), tl.maximum(in_column, 1)
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
def region_pixels(index, top, rows, left, columns):
    """Image, row and column of pixels number ``index`` of a region."""
    row = index // columns
    return row // rows, top + row % rows, left + index % columns


@triton.jit
def kind_of(y, size):
    """The kind of pixels y; of a region, that of its first. 1 for pixels that do not exist."""
    return tl.where(y == 0, 0, tl.where(y == size - 1, 2, 1))


@triton.jit
def tap_between(choice: tl.constexpr, kind, size, s, i, factor: tl.constexpr):
    """The tap from input pixel y + s - 2 to output pixel factor * y + i, -1 if there is none.

    ``choice`` 0 is the tap of every pixel, 1 that at the start of the axis, 2 that at its end.
    """
    main: tl.constexpr = MAIN[factor]
    outer: tl.constexpr = OUTER[factor]
    inner: tl.constexpr = INNER[factor]
    tap = factor * (2 - s) + PADDING[factor] + i
    exists = (tap >= 0) & (tap < main)
    if choice == 1:
        tap = main + tl.where(s == 2, i, 2 * outer + i)
        exists = (kind == 0) & (((s == 2) & (i < outer)) | ((s == 3) & (i < inner)))
    if choice == 2:
        from_end = factor - 1 - i
        tap = main + 2 * outer - 1 - from_end + tl.where(s == 2, 0, 2 * inner)
        exists = ((s == 2) & (from_end < outer)) | ((s == 1) & (from_end < inner))
        exists = exists & ((kind == 2) | (size == 1))
    return tl.where(exists, tap, -1)


@triton.jit
def place_of(tap, kind, size, factor: tl.constexpr):
    """s and i of :func:`tap_between` for a tap; i is -1 for pixels of a kind that has it not."""
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
