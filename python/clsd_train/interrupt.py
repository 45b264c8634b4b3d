"""Ctrl-C and SIGTERM: a step is finished, what was learned is saved, the exit code is theirs."""

import signal
import threading
from types import FrameType
from typing import Any, TypeVar

Handlers = TypeVar("Handlers", bound="_Handlers")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ends the command. The message says what is kept."""

    def __init__(self, signum: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signum = signum


class _Handlers:
    """Handles the signals within ``with``; what the process ignores stays ignored."""

    def __enter__(self: Handlers) -> Handlers:
        self._previous: dict[signal.Signals, Any] = {}
        # Python gives signals to its main thread alone.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)


class RaiseOnSignal(_Handlers):
    """Within ``with``, a signal raises :class:`Interrupted`, which cleans up on its way."""


class NoteSignal(_Handlers):
    """Within ``with``, the first signal is noted in ``signum``; a second one raises."""

    signum: int | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(number)
        self.signum = number
