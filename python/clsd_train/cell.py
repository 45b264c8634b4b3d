"""One training of a study: run, scored and recorded, in a process of its own."""

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clsd_fast import use_backend
from clsd_fast.env import report

from .config import Config
from .data import decode_pairs
from .errors import UserError
from .files import write_atomically
from .history import read_history, step_milliseconds
from .images import bicubic_upscale
from .loop import Run
from .metrics import Quality, mean_quality, quality
from .pairing import find_pairs
from .run_folder import HISTORY
from .study import SetConfig
from .upscale import upscale

# What ru_maxrss counts in.
UNIT = 1 if sys.platform == "darwin" else 1024


class Record(NamedTuple):
    """What is kept of a finished cell.

    Attributes:
        settings: plain values of its run's configuration by section.
        milliseconds: median of its steps, batches included.
        peak_bytes: of memory; on a CPU what the process grew by while it trained, on a GPU what
            was allocated.
        parameters: that were trained, heads included.
        scores: the student's on each set.
        bicubic: bicubic's on each set.
        machine: versions and devices.
    """

    settings: dict[str, Any]
    milliseconds: float
    peak_bytes: int
    parameters: int
    scores: dict[str, Quality]
    bicubic: dict[str, Quality]
    machine: dict[str, str]

    @property
    def iterations(self) -> int:
        return int(self.settings["train"]["iterations"])

    @property
    def hours(self) -> float:
        """Of all steps, without validation."""
        return self.hours_for(self.iterations)

    def hours_for(self, iterations: int) -> float:
        """Of so many steps."""
        return self.milliseconds * iterations / 3_600_000

    def plain(self) -> dict[str, Any]:
        """Its values, as JSON has them."""
        content = self._asdict()
        for key in ("scores", "bicubic"):
            content[key] = {name: score._asdict() for name, score in content[key].items()}
        return content

    def write(self, path: Path) -> None:
        text = json.dumps(self.plain(), indent=2) + "\n"
        write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Raises:
        UserError: if it is damaged."""
        try:
            content = json.loads(path.read_bytes())
            for key in ("scores", "bicubic"):
                content[key] = {name: Quality(**score) for name, score in content[key].items()}
            record = cls(**content)
            record.hours  # noqa: B018 - what it is made of is there
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            raise UserError(f"compare: expected a cell's results in {path}, got others") from None
        return record


def train_cell(config: Config, backend: str, sets: Mapping[str, SetConfig], record: Path) -> None:
    """Begin or continue the run of a cell, score its student and write the record.

    Raises:
        UserError: as of :class:`clsd_train.loop.Run`.
        Interrupted: after a signal, when the step is finished and saved.
    """
    with use_backend(backend):
        run = Run(config, resume=True)
        before = _peak(config)
        run.train()
        peak = _peak(config) - before
        machine = report()
        scores, bicubic = {}, {}
        for name, folders in sets.items():
            bicubic[name], scores[name] = _score(run, folders)
    steps = read_history(config.output / HISTORY)
    parameters = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    Record(
        settings=config.model_dump(mode="json"),
        milliseconds=step_milliseconds(steps),
        peak_bytes=peak,
        parameters=parameters,
        scores=scores,
        bicubic=bicubic,
        machine=machine,
    ).write(record)


def _peak(config: Config) -> int:
    if config.train.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def _score(run: Run, folders: SetConfig) -> tuple[Quality, Quality]:
    """Of bicubic and of the student."""
    student = run.model.student.eval()
    scores = []
    for pair in decode_pairs(find_pairs(folders.hr, folders.lr, student.scale).files,
                             student.scale):  # fmt: skip
        images = bicubic_upscale(pair.lr, student.scale), upscale(student, pair.lr)
        try:
            scores.append([quality(image, pair.hr, student.scale) for image in images])
        except ValueError as error:
            raise UserError(f"compare: {pair.name}: {error}") from None
    bicubic, ours = zip(*scores, strict=True)
    return mean_quality(bicubic), mean_quality(ours)
