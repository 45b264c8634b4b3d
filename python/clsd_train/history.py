"""The log of a run."""

import json
import statistics
import warnings
from pathlib import Path
from typing import Any

from .errors import Notice, UserError
from .files import write_atomically


class History:
    """A list of entries that is also a file of JSON lines; a resumed run cuts off its future.

    Lines that a crash or a full disk has damaged are dropped with a warning.

    Args:
        path: the file.
        last_iteration: of the entries that are kept.
    """

    def __init__(self, path: Path, last_iteration: int) -> None:
        self._path = path
        past = read_history(path)
        self.entries = [entry for entry in past if entry["iteration"] <= last_iteration]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry to both.

        Raises:
            UserError: if the file cannot be written.
        """
        self.entries.append(entry)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"train: expected to write {self._path}, got {error.strerror}; "
                "what was there is kept"
            ) from None


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a file that are whole, none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    entries = [entry for entry in map(_parse, lines) if entry is not None]
    damaged = len(lines) - len(entries)
    if damaged:
        warnings.warn(
            f"train: expected JSON lines in {path}, dropped {damaged} damaged of {len(lines)}",
            Notice,
            stacklevel=2,
        )
    return entries


def step_milliseconds(entries: list[dict[str, Any]]) -> float:
    """The median over a run's log entries of their mean step, batches included."""
    steps = [entry["step_seconds"] for entry in entries if entry["kind"] == "train"]
    # The first makes buffers, and may compile.
    return 1000 * statistics.median(steps[1:] or steps)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("kind"), str)
    return entry if whole and type(entry.get("iteration")) is int else None
