"""Progress and log of a process that is not the one to show them."""

from typing import Any


class Silent:
    """Takes what :class:`~clsd_train.progress.Progress` and :class:`~clsd_train.board.Board` do."""

    loss: float | None = None
    psnr: float | None = None

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def update(self, iteration: int) -> None:
        """Show nothing."""

    def add(self, kind: str, values: dict[str, Any], iteration: int) -> None:
        """Log nothing."""
