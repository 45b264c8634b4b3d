"""The log of a run for TensorBoard."""

import threading
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .errors import UserError


class Board:
    """Scalars in a folder for TensorBoard, within ``with``.

    TensorBoard writes in a thread, whose errors Python would print with a traceback, and raises
    them again at the next call: here they are raised, once, and in one sentence.

    Args:
        folder: of the log.
        first: iteration from which entries of an earlier run are void.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder, self._first = folder, first

    def __enter__(self) -> "Board":
        self._hook, threading.excepthook = threading.excepthook, self._ignore_disk
        try:
            self._writer = SummaryWriter(self._folder, purge_step=self._first)
        except OSError as error:
            threading.excepthook = self._hook
            raise self._explain(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._writer.close()
        except OSError as error:
            if kind is None:
                raise self._explain(error) from None
        finally:
            threading.excepthook = self._hook

    def add(self, kind: str, values: dict[str, float], iteration: int) -> None:
        """Log values as ``kind/name``.

        Raises:
            UserError: if earlier ones could not be written.
        """
        try:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, iteration)
        except OSError as error:
            raise self._explain(error) from None

    def _ignore_disk(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._hook(args)

    def _explain(self, error: OSError) -> UserError:
        got = error.strerror or error
        return UserError(
            f"train: expected to write {self._folder}, got {got}; what was there is kept"
        )
