"""The index arithmetic of the tail's Triton kernels, in the interpreter, against `_tail_axes`."""

import itertools

import pytest
import torch
from support.grids import cover

from clsd_fast._tail_axes import AXES, OUT_CONV, STAGES

pytestmark = pytest.mark.usefixtures("interpreted_triton")


@cover(quick=1, ends=[1, 2])
def test_every_pixel_is_in_one_block_of_its_kind(ends):
    from support.tail_geometry import regions_kernel

    batch, size = 2, 4
    for height, width in itertools.product(range(1, 10), repeat=2):
        rows, columns = (
            [
                *range(min(n, ends)),
                *([ends] if n > 2 * ends else []),
                *range(max(n - ends, ends), n),
            ]
            for n in (height, width)
        )
        lengths = [
            [n - 2 * ends if first == ends and n > 2 * ends else 1 for first in parts]
            for n, parts in ((height, rows), (width, columns))
        ]
        blocks = sum(-(-batch * a * b // size) for a, b in itertools.product(*lengths))
        pixels = torch.zeros(64, size, 3, dtype=torch.int32)
        kinds = torch.zeros(64, 2, dtype=torch.int32)
        regions_kernel[(1,)](pixels, kinds, batch, height, width, ends, 64, size)
        found = pixels[:blocks].flatten(0, 1)
        found = [tuple(p) for p in found.tolist() if p[0] >= 0]
        every = itertools.product(range(batch), range(height), range(width))
        assert sorted(found) == sorted(every), (height, width)
        for block, pair in zip(pixels[:blocks].tolist(), kinds.tolist(), strict=False):
            for b, *place in block:
                for position, kind, n in zip(place, pair, (height, width), strict=True):
                    expected = 0 if position == 0 else (2 if position == n - 1 else 1)
                    assert b < 0 or ends == 2 or kind == expected


def plain_taps(axis, y, size):
    """By (s, i), the taps from pixel y + s - 2 to output pixel upscale * y + i."""
    taps = {}
    for segment in (s for s in axis.segments if s.exists(size)):
        for pixel in range(size)[segment.pixels(size)]:
            start = axis.upscale * pixel - axis.padding
            if segment.edge is not None:
                start = segment.target(axis.upscale * size).start or 0
            for tap in range(segment.length):
                i = start + tap - axis.upscale * y
                if 0 <= i < axis.upscale:
                    taps.setdefault((pixel - y + 2, i), []).append(segment.begin + tap)
    return taps


@pytest.mark.parametrize("scale", AXES)
def test_taps_are_those_of_the_axis(scale):
    from support.tail_geometry import taps_kernel

    axis = AXES[scale][0]
    for size in range(1, 10):
        for y in range(size):
            kind = 0 if y == 0 else (2 if y == size - 1 else 1)
            between = torch.full((5, scale, 3), -1, dtype=torch.int32)
            places = torch.full((axis.size, 2), -1, dtype=torch.int32)
            taps_kernel[(1,)](between, places, kind, size, axis.size, scale)
            expected = plain_taps(axis, y, size)
            for s, i in itertools.product(range(5), range(scale)):
                found = sorted(t for t in between[s, i].tolist() if t >= 0)
                if 0 <= y + s - 2 < size:
                    assert found == sorted(expected.get((s, i), []))
            for tap, (s, i) in enumerate(places.tolist()):
                if 0 <= y + s - 2 < size:
                    assert (tap in expected.get((s, i), [])) == (i >= 0)
            reached = {tap for taps in expected.values() for tap in taps}
            assert all(places[tap, 1] >= 0 for tap in reached)


@pytest.mark.parametrize("scale", AXES)
def test_paths_are_those_of_the_axis(scale):
    from support.tail_geometry import paths_kernel

    axis, after = AXES[scale][0], (*AXES[scale], OUT_CONV)[1]
    rows = 3 * STAGES[scale][0]
    forward = torch.zeros(rows, axis.size, 2, dtype=torch.int32)
    backward = torch.zeros(rows, after.size, 4, dtype=torch.int32)
    for row in range(rows):
        paths_kernel[(1,)](forward, backward, row, axis.size, after.size, scale)
    expected = sorted(axis.paths)
    found = [
        (row, then, tap, sign)
        for row, taps in enumerate(forward.tolist())
        for tap, (then, sign) in enumerate(taps)
        if sign
    ]
    assert sorted(found) == expected
    found = [
        (row, then, tap, sign)
        for row, afters in enumerate(backward.tolist())
        for then, (main, inside, edge, edge_sign) in enumerate(afters)
        for tap, sign in ((main, inside), (edge, edge_sign))
        if sign
    ]
    assert sorted(found) == expected
