"""The right to write into a folder, for one process at a time."""

import contextlib
import fcntl
import os
from pathlib import Path

from .errors import UserError

LOCK = "lock"


class FolderLock:
    """Held from construction to :meth:`release`, or to the end of the process whatever ends it.

    The folder is made if it is not there. Releasing leaves nothing behind that was not there
    before, if nothing was put into the folder.

    Raises:
        UserError: if the folder is locked by another run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        parents = [folder, *folder.absolute().parents]
        self._made = [path for path in parents if not path.exists()]
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                if self._acquire():
                    return

    def _acquire(self) -> bool:
        """Whether the lock is held; not if its file went with the run that held it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                return True
        except BlockingIOError:
            os.close(self._file)
            folder = self._path.parent
            raise UserError(
                f"train: expected a folder that no other run writes to, got {folder}"
            ) from None
        except FileNotFoundError:
            pass
        os.close(self._file)
        return False

    def release(self) -> None:
        """Let others have the folder; again does nothing."""
        if self._file < 0:
            return
        # The file goes first: who opens it later makes another.
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # a run is in it
                return
