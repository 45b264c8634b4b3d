"""Progress: a bar on a terminal; of a run, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

LINES_PER_RUN = 20

Item = TypeVar("Item")


class Progress:
    """Shows iterations per second, loss, PSNR and the time left, on stderr.

    Args:
        done: iterations that an earlier run has done.
        total: iterations of the whole run.
    """

    def __init__(self, done: int, total: int) -> None:
        console = Console(stderr=True)
        self.loss: float | None = None
        self.psnr: float | None = None
        self._done, self._total = done, total
        self._every = max(1, total // LINES_PER_RUN)
        self._started = time.perf_counter()
        self._bar = None
        if console.is_terminal:
            columns = ("{task.fields[status]}", BarColumn(), MofNCompleteColumn())
            texts = [TextColumn(c) if isinstance(c, str) else c for c in columns]
            self._bar = Bar(*texts, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("", total=total, completed=done, status="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, iteration: int) -> None:
        """Show the state after an iteration; ``loss`` and ``psnr`` are the last known."""
        if self._bar is None and iteration % self._every and iteration < self._total:
            return
        rate = (iteration - self._done) / (time.perf_counter() - self._started)
        parts = [
            "" if self.loss is None else f"loss {self.loss:.4f}",
            f"{rate:.2f} it/s",
            "" if self.psnr is None else f"{self.psnr:.2f} dB",
        ]
        status = "  ".join(filter(None, parts))
        if self._bar:
            self._bar.update(self._task, completed=iteration, status=status)
        else:
            left = (self._total - iteration) / rate
            print(f"{iteration}/{self._total}  {status}  {left:.0f} s left", file=sys.stderr)


def track(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items one by one, which a bar on stderr counts if that is a terminal."""
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Bar(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        # What is printed goes above the bar where both are one terminal, else where it belongs.
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        yield from bar.track(items, total)
