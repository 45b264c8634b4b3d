"""Weights of another run to begin with."""

from pathlib import Path

from clsd_fast import EDSR

from .architecture import Reading, Sizes
from .checkpoint import load_student
from .errors import UserError, tell


def warm_start(student: EDSR, path: Path) -> None:
    """Give a student the weights of a file; of another scale, all but the tail's.

    Raises:
        UserError: as of :func:`load_student`, and if they are of another architecture, or read in
            another way.
    """
    source = load_student(path)
    expected, got = _without_scale(student), _without_scale(source)
    if got != expected:
        differ = [name for name in expected if expected[name] != got[name]]
        expectations, found = (
            ", ".join(f"{name} {values[name]}" for name in differ) for values in (expected, got)
        )
        raise UserError(f"config: train.init: expected {expectations} in {path}, got {found}")
    weights = source.state_dict()
    if source.scale != student.scale:
        weights = {name: w for name, w in weights.items() if not name.startswith("tail.")}
        tell(f"train.init: {path} is of x{source.scale}, the tail of x{student.scale} begins anew")
    student.load_state_dict(weights, strict=False)


def _without_scale(student: EDSR) -> dict[str, float]:
    facts = {**Sizes.of(student)._asdict(), **Reading.of(student)._asdict()}
    del facts["scale"]
    return facts
