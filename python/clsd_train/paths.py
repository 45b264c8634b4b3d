"""Paths as people write them: with ``~`` and with globs."""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import UserError, shorten


def expand_path(text: str | Path) -> Path:
    """A path with ``~`` expanded.

    Raises:
        UserError: for an empty path, which would mean the current folder, and for one that no
            file can have.
    """
    name = os.fspath(text)
    if not name:
        raise UserError("expected a path, got an empty one")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise UserError(f"expected a path in {encoding}, got {shorten(name)}") from None
    if "\0" in name:
        raise UserError(f"expected a path, got {shorten(name)} with a NUL")
    return Path(os.path.expanduser(name))


def expand_inputs(texts: Iterable[str | Path]) -> tuple[Path, ...]:
    """Paths of what is read, with ``~`` and globs expanded. A name that exists is no glob.

    Raises:
        UserError: as of :func:`expand_path`, and for a glob that nothing matches.
    """
    found: list[Path] = []
    for text in texts:
        path = expand_path(text)
        if not glob.has_magic(str(path)) or os.path.lexists(path):
            found.append(path)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise UserError(f"expected a path, got {path}, which nothing matches")
        found += map(Path, matches)
    return tuple(found)


def expand_input(text: str | Path) -> Path:
    """The one path that :func:`expand_inputs` finds.

    Raises:
        UserError: as of :func:`expand_inputs`, and for a glob of several.
    """
    paths = expand_inputs([text])
    if len(paths) > 1:
        raise UserError(f"expected one path, got {text}, which {len(paths)} match")
    return paths[0]


def what_is_at(path: Path, wanted: str) -> str:
    """Why a path is not the file or folder that was wanted, for the end of a message."""
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file"
    return "neither file nor folder" if path.exists() else f"no such {wanted}"


def absolute(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The paths from the root, links kept."""
    return tuple(path.absolute() for path in paths)
