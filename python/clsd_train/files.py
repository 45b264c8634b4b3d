"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a scratch file beside path, then put it in path's place.

    A link keeps pointing where it does, and what is no file, as ``/dev/stdout``, is written to.

    Raises:
        UserError: if the disk is full or the folder cannot be written to; what was there is kept.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            write(target)
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=_prefix(target)) as scratch:
            scratch_path = Path(scratch) / target.name
            write(scratch_path)
            # Else a crash of the machine may leave the new name on an empty file.
            with scratch_path.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(scratch_path, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"expected to write {path}, got {reason}; what was there is kept") from None


def check_new(path: Path, command: str, overwrite: bool) -> None:
    """Refuse to write where something is, or nothing can be.

    Raises:
        UserError: for a folder, a file that is not to be replaced, or no folder around it.
    """
    if path.is_dir():
        raise UserError(f"{command}: expected a file to write, got {path}: a folder")
    if not path.parent.is_dir():
        raise UserError(f"{command}: expected an existing folder for {path}, got none")
    if path.exists() and not overwrite:
        raise UserError(
            f"{command}: expected a new file, got {path}, which exists (--overwrite replaces it)"
        )


def scratch_folders(path: Path) -> list[Path]:
    """What :func:`write_atomically` left beside path where a process was killed."""
    return sorted(path.parent.glob(f"{_prefix(path)}*"))


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."
