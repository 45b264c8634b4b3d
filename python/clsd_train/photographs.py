"""Photographs that scikit-image ships, for what has to run without a data set."""

from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from .errors import UserError
from .files import write_atomically

TRAINING = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
HELD_OUT = ("chelsea.png", "coffee.png")


def check_photographs(command: str) -> None:
    """Raise a UserError if there are none."""
    if find_spec("skimage") is None:
        got = "(pip install 'clsd-fast[demo]'), got none"
        raise UserError(f"{command}: expected scikit-image {got}")


def copy_photographs(target: Path) -> None:
    """Copy them to ``target/train`` and ``target/held-out``; what is there stays as it is."""
    source = files("skimage") / "data"
    for folder, names in (("train", TRAINING), ("held-out", HELD_OUT)):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            path = target / folder / name
            if not path.exists():
                content = (source / name).read_bytes()
                write_atomically(path, partial(Path.write_bytes, data=content))
