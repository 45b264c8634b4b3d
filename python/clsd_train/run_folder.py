"""The folder of a run: its files, who may write to it, and what is found in it."""

import os
import shutil
from pathlib import Path

from .checkpoint import read_state
from .config import Config, load_config, validate_config
from .errors import UserError
from .files import scratch_folders, write_atomically
from .lock import LOCK, FolderLock

STUDENT, STATE, HISTORY, CONFIG = "student.safetensors", "state.pt", "history.jsonl", "config.yaml"
BEST, TENSORBOARD = "best.safetensors", "tensorboard"
FILES = (STUDENT, BEST, STATE, HISTORY, CONFIG, TENSORBOARD)


class RunFolder:
    """``config.output``, made and locked until :meth:`release`.

    Args:
        path: the folder.
        resume: continue its run, or start one where there is none; else it has to hold none.
        writes: whether it is this process that does; of several ranks the first.

    Raises:
        UserError: if another run writes to it, or it holds what does not fit.
    """

    def __init__(self, path: Path, resume: bool, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        if not writes:
            return
        if path.exists() and not path.is_dir():
            raise UserError(f"train: expected an empty or new output folder, got {path}: a file")
        self._lock = FolderLock(path)
        try:
            self._check(resume)
            for name in FILES:
                for scratch in scratch_folders(path / name):
                    shutil.rmtree(scratch)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other runs have the folder, which goes if it was made and nothing is in it."""
        if self.writes:
            self._lock.release()

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return (self.path / STATE).exists()

    def file(self, name: str) -> Path:
        """Where to write what is called so; what need not be kept goes where nothing is."""
        return self.path / name if self.writes else Path(os.devnull)

    def saved_config(self) -> Config | None:
        """As of :func:`saved_config`."""
        return saved_config(self.path)

    def write_config(self, config: Config) -> None:
        """Record the settings in use."""
        if not self.writes:
            return
        text = config.with_absolute_paths().to_yaml()
        write_atomically(self.path / CONFIG, lambda p: p.write_text(text, encoding="utf-8"))

    def _check(self, resume: bool) -> None:
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        names = {name for name in names if not name.startswith(tuple(f".{n}." for n in FILES))}
        if not names:
            return
        if not names & set(FILES):
            raise UserError(
                f"train: expected an empty or new output folder, got {self.path} with other files"
            )
        if resume and not self.has_state and STUDENT in names:
            raise UserError(
                f"train: expected {STATE} beside {STUDENT} in {self.path}, got none "
                "(without it the run cannot continue, and would replace the student)"
            )
        if not resume and not self._never_began(names):
            raise UserError(
                f"train: expected an empty or new output folder, got {self.path} "
                "(--resume continues its run)"
            )

    def _never_began(self, names: set[str]) -> bool:
        """Whether a run failed in it before its first iteration: it has nothing to lose."""
        history = self.path / HISTORY
        return names <= {HISTORY, CONFIG, TENSORBOARD} and not (
            history.exists() and history.stat().st_size
        )


def saved_config(path: Path) -> Config | None:
    """The settings of the run in a folder, None if there is none.

    They are those of ``config.yaml``, which people may edit; if it is gone, of ``state.pt``.

    Raises:
        UserError: if they do not read.
    """
    config, state = path / CONFIG, path / STATE
    if config.exists() and (config.is_dir() or config.stat().st_size):
        return load_config(config)
    if not state.exists():
        return None
    saved = read_state(state).get("config")
    if not isinstance(saved, dict):
        raise UserError(f"config: expected the run's settings in {config}, got no such file")
    return validate_config(saved)
