"""The rows and columns of the composed tail: which taps it has, and which paths make them up.

``docs/tail.md`` derives this. Over one axis, a tail maps each pixel to ``taps`` output pixels. Its
intermediate maps end at their borders, and paths through pixels beyond those do not exist: so the
pixels at the edge have further, negative taps that take such paths off again.
"""

from typing import NamedTuple

#: What the stages of EDSR's upsampler shuffle by, by the factor of all of it.
STAGES = {2: (2,), 3: (3,), 4: (2, 2)}
#: The factors as errors name them.
FACTORS = f"{{{', '.join(map(str, STAGES))}}}"


class Segment(NamedTuple):
    """Consecutive taps of an axis: those of every pixel, or of one at an edge."""

    begin: int
    length: int
    edge: int | None  # which pixel, negative from the end

    def exists(self, size: int) -> bool:
        """Whether an axis of ``size`` pixels has the pixel."""
        return self.edge is None or (self.edge if self.edge >= 0 else ~self.edge) < size

    @property
    def taps(self) -> slice:
        """Those of all taps of the axis."""
        return slice(self.begin, self.begin + self.length)

    def pixels(self, size: int) -> slice:
        """The input pixels that have these taps."""
        if self.edge is None:
            return slice(None)
        return slice(self.edge % size, self.edge % size + 1)

    def target(self, size: int) -> slice:
        """The output pixels, of ``size``, that they reach."""
        if self.edge is None:
            return slice(None)
        return slice(self.length) if self.edge >= 0 else slice(size - self.length, size)


class Path(NamedTuple):
    """One way from an input pixel to the output: its part in a tap."""

    row: int  # of the 3 r rows of the next map that a pixel reaches
    after: int  # the tap from there on
    tap: int
    sign: int


class Axis(NamedTuple):
    """Rows or columns of a tail.

    The taps of pixel y reach output pixels ``upscale * y - padding`` and on.
    """

    upscale: int
    padding: int
    segments: tuple[Segment, ...]
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """All taps."""
        last = self.segments[-1]
        return last.begin + last.length

    def mirrored(self, tap: int) -> int:
        """The tap in whose place this one is if the axis is turned around."""
        for segment in self.segments:
            place = tap - segment.begin
            if 0 <= place < segment.length:
                other = self.segments[0]
                if segment.edge is not None:
                    other = next(s for s in self.segments if s.edge == ~segment.edge)
                return other.begin + segment.length - 1 - place
        raise IndexError(tap)


#: The last convolution: row y of its input adds to rows y - 1 to y + 1.
OUT_CONV = Axis(1, 1, (Segment(0, 3, None),), ())


def prepend(stage: int, after: Axis) -> Axis:
    """The axis of a 3x3 convolution and a pixel shuffle by ``stage``, with ``after`` behind it.

    Row y adds to rows ``stage * (y - 1)`` to ``stage * (y + 2) - 1`` of the next map. Those before
    the first or after the last are none: the taps of pixels at the edge take them off again.
    """
    upscale, padding = stage * after.upscale, stage * after.upscale + after.padding
    rows, taps = range(3 * stage), range(after.segments[0].length)
    main = [Path(row, tap, after.upscale * row + tap, 1) for row in rows for tap in taps]
    segments, paths = [Segment(0, main[-1].tap + 1, None)], main
    edge = 0
    while start := _start_paths(stage, after, edge):
        length = 1 + max(path.tap for path in start)
        first = segments[-1].begin + segments[-1].length
        segments += [Segment(first, length, edge), Segment(first + length, length, ~edge)]
        last = first + 2 * length - 1
        for row, tap, output, sign in start:
            paths.append(Path(row, tap, first + output, sign))
            mirrored = rows[-1] - row, after.mirrored(tap)
            paths.append(Path(*mirrored, last - output, sign))
        edge += 1
    return Axis(upscale, padding, tuple(segments), tuple(paths))


def _start_paths(stage: int, after: Axis, edge: int) -> list[Path]:
    """What is taken off the pixel ``edge`` at the start of an axis, by output pixel."""
    paths = []
    for row in range(3 * stage):
        position = stage * (edge - 1) + row
        for begin, length, after_edge in after.segments:
            if position < 0 and after_edge is None:
                first = after.upscale * position - after.padding
                paths += [Path(row, t, first + t, -1) for t in range(length) if first + t >= 0]
            elif position >= 0 and after_edge == position:
                paths += [Path(row, begin + t, t, 1) for t in range(length)]
    return paths


def _make_axes(stages: tuple[int, ...]) -> tuple[Axis, ...]:
    """The axis from each stage to the end, in the stages' order."""
    axes = [OUT_CONV]
    for stage in reversed(stages):
        axes.insert(0, prepend(stage, axes[0]))
    return tuple(axes)


#: By upscale factor: the axis from each stage to the end, and that of the last convolution.
AXES = {factor: _make_axes(stages) for factor, stages in STAGES.items()}
