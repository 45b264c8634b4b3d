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
        kinds = torch.zeros(3, 3, 2, dtype=torch.int32)
        regions_kernel[(1,)](pixels, kinds, batch, height, width, ends, 64, size)
        found = pixels[:blocks].flatten(0, 1)
        found = [tuple(p) for p in found.tolist() if p[0] >= 0]
        every = itertools.product(range(batch), range(height), range(width))
        assert sorted(found) == sorted(every), (height, width)
        if ends == 1:
            of_kind = {pair: [] for pair in itertools.product(range(3), repeat=2)}
            for number, block in enumerate(pixels[:blocks].tolist()):
                pairs = {(kind_of(y, height), kind_of(x, width)) for b, y, x in block if b >= 0}
                assert len(pairs) == 1
                of_kind[pairs.pop()].append(number)
            for pair, numbers in of_kind.items():
                first, count = kinds[pair].tolist()
                assert numbers == list(range(first, first + count)), (height, width, pair)


def kind_of(position, size):
    return 0 if position == 0 else (2 if position == size - 1 else 1)


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


def reached(kernel, y, size, scale, back):
    """(input pixel, output pixel, i, tap) of all reaches of a pixel."""
    taps = torch.full((9, 4), -1, dtype=torch.int32)
    shifts, after = torch.zeros(9, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    kernel[(1,)](taps, shifts, after, y, size, back, scale)
    assert after.item() == 9
    for (reach, i), tap in zip(itertools.product(range(9), range(4)), taps.flatten(), strict=True):
        shift = shifts[reach].item()
        pair = (y, y - shift) if back else (y + shift, y)
        if tap >= 0 and all(0 <= pixel < size for pixel in pair):
            yield *pair, i, tap.item()


@pytest.mark.parametrize("scale", AXES)
def test_reaches_are_those_of_the_axis(scale):
    from support.tail_geometry import reaches_kernel

    axis = AXES[scale][0]
    for size in range(1, 7):
        expected = sorted(
            (y + s - 2, y, i, tap)
            for y in range(size)
            for (s, i), taps in plain_taps(axis, y, size).items()
            for tap in taps
        )
        for back in (False, True):
            found = [t for y in range(size) for t in reached(reaches_kernel, y, size, scale, back)]
            assert sorted(found) == expected, (size, back)


@pytest.mark.parametrize("scale", AXES)
def test_places_of_taps_are_those_of_the_axis(scale):
    from support.tail_geometry import places_kernel

    axis = AXES[scale][0]
    for size in range(1, 10):
        for y in range(size):
            places = torch.full((axis.size, 2), -1, dtype=torch.int32)
            places_kernel[(1,)](places, kind_of(y, size), size, axis.size, scale)
            expected = plain_taps(axis, y, size)
            for tap, (s, i) in enumerate(places.tolist()):
                if 0 <= y + s - 2 < size:
                    assert (tap in expected.get((s, i), [])) == (i >= 0)
            assert all(places[tap, 1] >= 0 for taps in expected.values() for tap in taps)


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
