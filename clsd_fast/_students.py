"""What heads need to know of a student: an EDSR, which knows it, or any, of which it is told."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ._tail_axes import FACTORS, STAGES
from ._taps import Taps
from .edsr import EDSR
from .nn import UpsampleTail
from .ops import _checks

MakeHead = Callable[[int, int], nn.Module]


class Described(NamedTuple):
    """A student, as its heads see it."""

    scale: int
    #: Value of white in its images.
    value_range: float
    #: By which its features are read, not on it yet; an EDSR needs none.
    hooks: Taps | None
    #: Of its features.
    channels: int
    #: Makes what gives images of a head's features.
    make_tail: Callable[[], nn.Module]


def are_paths(taps: Sequence[int] | Sequence[str]) -> bool:
    """Whether taps are paths of modules, and not block numbers.

    Raises:
        ValueError: for taps of both kinds, a path twice, and one that is no sequence of them.
    """
    if isinstance(taps, str):
        raise ValueError(f"CLSD: expected a sequence of taps, got {taps!r}")
    _checks.check_list("CLSD", "taps", taps, "block numbers or paths")
    kinds = {isinstance(tap, str) for tap in taps}
    if len(kinds) > 1:
        raise ValueError(f"CLSD: expected taps all by number or all by path, got {list(taps)}")
    if kinds == {True} and len(set(taps)) < len(taps):
        raise ValueError(f"CLSD: expected distinct taps, got {list(taps)}")
    return kinds == {True}


def by_number(
    student: nn.Module,
    taps: Sequence[int],
    scale: int | None,
    value_range: float,
    **others: object,
) -> Described:
    """An EDSR; ``others`` are the options of other students."""
    numbers = [_checks.integer("CLSD", "taps", tap) for tap in taps]
    if not numbers or numbers != sorted(set(numbers)):
        raise ValueError(f"CLSD: expected ascending, distinct taps, got {numbers}")
    if not isinstance(student, EDSR):
        kind = type(student).__name__
        raise TypeError(f"CLSD: expected student to be an EDSR for taps by number, got {kind}")
    for tap in numbers:
        if not 1 <= tap <= student.num_blocks:
            raise ValueError(f"CLSD: expected taps in 1..{student.num_blocks}, got {tap}")
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"CLSD: expected no {name}= for taps by number, got {value}")
    scale, value_range = _images_of(student, scale, value_range)
    return Described(scale, value_range, None, student.channels, student.make_tail)


def by_path(
    student: nn.Module,
    taps: Sequence[str],
    scale: int | None,
    value_range: float,
    channels: int | None,
    head: MakeHead | None,
    deep: str | None = None,
    shallow: str | None = None,
) -> Described:
    """Any student.

    Without taps there are no heads, and nothing is found out for them.
    """
    scale, value_range = _images_of(student, scale, value_range)
    hooks = Taps(student, taps, deep, shallow, scale, channels)
    if channels is None:
        channels = hooks.find_channels(student) if taps else 0
    make_tail = partial(_made_head, head, channels, scale)
    return Described(scale, value_range, hooks, channels, make_tail)


def check_points(
    deep: str | None, shallow: str | None, contrast_weight: float | Tensor, skip: str
) -> None:
    """That what the losses need of a student by path is told."""
    if contrast_weight and deep is None:
        raise ValueError("CLSD: expected deep= for the contrast of taps by path, got none")
    if skip == "first" and shallow is None:
        raise ValueError("CLSD: expected shallow= for skip 'first' of taps by path, got none")


def _images_of(student: nn.Module, scale: int | None, value_range: float) -> tuple[int, float]:
    """Scale and value range of its images, those of an EDSR being its own."""
    if isinstance(student, EDSR):
        own = student.scale, student.value_range
        if scale not in (None, own[0]) or value_range not in (1.0, own[1]):
            got, expected = f"{scale} and {value_range}", "{} and {}".format(*own)
            raise ValueError(
                f"CLSD: expected the EDSR's scale and value_range {expected}, got {got}"
            )
        return own
    if scale is None:
        raise ValueError("CLSD: expected scale= of a student that is no EDSR, got none")
    if scale < 1 or not value_range > 0:
        got = f"{scale} and {value_range}"
        raise ValueError(f"CLSD: expected scale >= 1 and value_range > 0, got {got}")
    return scale, value_range


def _made_head(make: MakeHead | None, channels: int, scale: int) -> nn.Module:
    if make is None:
        if scale not in STAGES:
            raise ValueError(f"CLSD: expected scale in {FACTORS} without head=, got {scale}")
        return UpsampleTail(scale, channels)
    made: object = make(channels, scale)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise TypeError(f"CLSD: expected head(channels, scale) to be an nn.Module, got {kind}")
    return made
