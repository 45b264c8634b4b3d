"""The training loop."""

import shlex
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from clsd_fast import EDSR

from .batches import make_batches
from .best import Best
from .board import Board
from .build import build_model
from .checkpoint import load_part, load_weights, read_state, save_student, write_state
from .config import Config, changes
from .data import Pair, Pairs, load_cached, load_training_pairs
from .errors import SharedError, UserError, shorten, tell
from .graph import WARM_UP, WARM_UP_OF_RANKS, Graphed
from .history import History
from .interrupt import Interrupted, NoteSignal
from .metrics import Quality, least_size, mean_quality, quality
from .progress import Progress
from .ranks import Ranks
from .rng import rng_state, set_rng_state
from .run_folder import BEST, HISTORY, STATE, STUDENT, TENSORBOARD, RunFolder
from .schedule import learning_rate
from .silent import Silent
from .step import Step
from .upscale import upscale
from .warm_start import warm_start

# Below it float16 rounds gradients to 0: they were infinite or NaN again and again.
LEAST_LOSS_SCALE = 1.0


class Run:
    """One training run: model, optimizer, data and the files under ``config.output``.

    Nothing is written before everything that the configuration names is read and checked. The
    folder is this run's, and no other's, until :meth:`train` has ended or :meth:`close` is called.

    Args:
        config: the run.
        resume: continue from ``state.pt`` in the output folder, bit-exactly where the settings are
            the same; what differs is in effect, is told on stderr and logged. Without a
            ``state.pt``, begin.

    Raises:
        UserError: if data, options or the output folder do not fit.
    """

    def __init__(self, config: Config, resume: bool = False) -> None:
        self.config = config
        self.iteration = 0
        self._seconds: list[float] = []  # of each step since the last log entry
        self.ranks = Ranks(_device(config.train.device))
        self.device = self.ranks.device
        self.samples = self.ranks.samples(config.train)
        self.ranks.first(lambda: self._open(resume))

    def _open(self, resume: bool) -> None:
        self.folder = RunFolder(self.config.output, resume, writes=self.ranks.rank == 0)
        try:
            self._prepare(resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool) -> None:
        config, options = self.config, self.config.train
        if options.threads:
            torch.set_num_threads(options.threads)
        self.model = build_model(config, self.ranks.group).to(self.device)
        # PyTorch does not declare this argument beside another.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        begins = not (resume and self.folder.has_state)
        if begins and options.init:
            warm_start(self.model.student, options.init)
        self.step = Step(self.model.train(), self.model.student, options)
        self.best = Best()
        if not begins:
            self._load_state()
        self.train_pairs = load_training_pairs(config.data, config.scale, config.output)
        self.val_sets = _validation_sets(config)
        saved = self.folder.saved_config() if resume else None
        self.folder.write_config(config)
        self.history = History(self.folder.file(HISTORY), self.iteration)
        if saved:
            if self.iteration == 0:
                tell(f"no checkpoint is in {config.output}, its run begins again")
            self._tell_changes(changes(saved, config))
        tell(self.train_pairs.summary("training"))
        for name, pairs in self.val_sets.items():
            tell(pairs.summary(f"validation on {name}" if name else "validation"))
        if self.iteration >= options.iterations:
            tell(f"nothing is left of {options.iterations} iterations, {self.iteration} are done")

    def _tell_changes(self, changed: dict[str, list[Any]]) -> None:
        for key, (old, new) in changed.items():
            tell(f"{key}: {shorten(old)} -> {shorten(new)}")
        if changed:
            self.history.add({"kind": "settings", "iteration": self.iteration, "changed": changed})

    @property
    def student(self) -> EDSR:
        """What the run makes: the student, or the average of its weights under ``train.ema``."""
        return self.step.student

    def close(self) -> None:
        """Let others have the folder."""
        self.folder.release()

    def train(self) -> list[dict[str, Any]]:
        """Train to the last iteration; returns the history, as in ``history.jsonl``.

        Raises:
            UserError: if the loss is not finite. The last checkpoint stays as it was.
            Interrupted: after SIGINT or SIGTERM, when the step is finished and saved.
        """
        try:
            self._train()
        finally:
            self.close()
            self.ranks.close()
        return self.history.entries

    def _train(self) -> None:
        options = self.config.train
        progress: Progress | Silent = Silent()
        board: Board | Silent = Silent()
        if self.folder.writes:
            progress = Progress(self.iteration, options.iterations)
            board = Board(self.config.output / TENSORBOARD, self.iteration + 1)
        self.step.model = self.ranks.wrap(self.model, options.accumulate)
        self.batches = make_batches(
            self.train_pairs, self.config, self.samples, self.iteration + 1, self.device
        )
        self._advance = self._make_advance()
        try:
            with progress, board, NoteSignal() as noted:
                while self.iteration < options.iterations and not self._is_in_vain():
                    self._iterate(progress, board)
                    signum = self.ranks.greatest(noted.signum or 0)
                    if signum:
                        self._interrupt(signum)
        finally:
            self.batches.close()
        if self._is_in_vain():
            best = self.best
            tell(
                f"train.patience: {best.since} validations were no better than {best.psnr:.2f} dB "
                f"at iteration {best.iteration}, the run ends"
            )

    def _make_advance(self) -> Callable[[], None]:
        """What computes a step on the loaded batch."""

        def update() -> None:
            self.step.update(*self.batches.images())

        graphed = self.device.type == "cuda" and self.config.train.graph == "auto"
        calls = WARM_UP if self.ranks.size == 1 else WARM_UP_OF_RANKS
        return Graphed(update, self.step.renew, calls=calls) if graphed else update

    def _interrupt(self, signum: int) -> NoReturn:
        self.save()
        output = self.config.output
        raise Interrupted(
            signum,
            f"interrupted, iteration {self.iteration} is saved "
            f"(clsd train {shlex.quote(f'output={output}')} --resume continues)",
        )

    def _iterate(self, progress: Progress | Silent, board: Board | Silent) -> None:
        options = self.config.train
        started = time.perf_counter()
        self._step()
        last = self.iteration == options.iterations
        logs = self.iteration % options.log_every == 0 or self.iteration == 1 or last
        losses = self._read_losses() if logs else {}  # which waits for the steps
        self._seconds.append(time.perf_counter() - started)
        if logs:
            self._log("train", {**losses, **self._conditions()}, board)
            progress.loss = losses["total"]
            self.step.meter.reset()
            self._seconds.clear()
        if self.val_sets and (self.iteration % options.eval_every == 0 or last):
            self._read_losses()
            progress.psnr = self._validate(board)
        if self.iteration % options.save_every == 0 or last or self._is_in_vain():
            self.save()
        progress.update(self.iteration)

    def _step(self) -> None:
        self.batches.load(self.iteration + 1)
        self.step.rate.fill_(learning_rate(self.config.train, self.iteration + 1))
        with self.ranks.explained():
            self._advance()
        self.iteration += 1

    def _validate(self, board: Board | Silent) -> float:
        """Score the student on every set, keep it if it is the best; returns the mean PSNR."""
        results = {}
        for name, pairs in self.val_sets.items():
            results[name] = validate(self.student, pairs, self.ranks)
        self.model.train()
        mean = mean_quality(list(results.values()))
        entry = mean._asdict()
        for name, result in results.items():
            if name:
                entry |= {f"{name}/{key}": value for key, value in result._asdict().items()}
        self._log("val", entry, board)
        if self.best.add(mean.psnr, self.iteration):
            self._save_student(BEST)
        return mean.psnr

    def _is_in_vain(self) -> bool:
        """Whether so many validations were no better that the run ends."""
        patience = self.config.train.patience
        return patience is not None and self.best.since >= patience

    def _read_losses(self) -> dict[str, float]:
        """The mean of each loss since the last log entry.

        Raises:
            UserError: if one was not finite, or float16 has lost the gradients.
        """
        own, steps, own_finite_steps = self.step.meter.read()
        losses = dict(zip(own, self.ranks.mean(own.values()), strict=True))
        finite_steps = self.ranks.least(own_finite_steps)
        if finite_steps < steps:
            self._stop("a finite loss", losses["total"], self.iteration - steps + finite_steps + 1)
        scale = self.step.loss_scale
        if scale is not None and scale < LEAST_LOSS_SCALE:
            self._stop(f"a loss scale of at least {LEAST_LOSS_SCALE:g}", scale, self.iteration)
        return losses

    def _conditions(self) -> dict[str, float]:
        """Under what the steps since the last log entry were."""
        scale = self.step.loss_scale
        return {
            "learning_rate": learning_rate(self.config.train, self.iteration),
            **({} if scale is None else {"loss_scale": scale}),
            "step_seconds": sum(self._seconds) / len(self._seconds),
        }

    def _stop(self, expected: str, got: object, iteration: int) -> NoReturn:
        raise SharedError(
            f"train: expected {expected}, got {got} at iteration {iteration}; "
            f"{self._kept()} (lower train.learning_rate?)"
        )

    def _kept(self) -> str:
        return "the last checkpoint is kept" if self.folder.has_state else "nothing was saved yet"

    def _log(self, kind: str, values: dict[str, float], board: Board | Silent) -> None:
        self.history.add({"kind": kind, "iteration": self.iteration, **values})
        board.add(kind, values, self.iteration)

    def save(self) -> None:
        """Write the student's weights and the run's state, each complete or not at all.

        Raises:
            UserError: if a weight is not finite. The last checkpoint stays as it was.
        """
        self._read_losses()
        if not self.step.is_finite():
            self._stop("finite weights", "infinity or NaN", self.iteration)
        step = self.step.state_dict()
        sums = step["meter"]["sums"]
        step["meter"]["sums"] = dict(zip(sums, self.ranks.mean(sums.values()), strict=True))
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            **step,
            "rng": rng_state(self.device),
            "best": self.best.state_dict(),
            "config": self.config.with_absolute_paths().model_dump(mode="json"),
        }
        if self.folder.writes:
            write_state(self.config.output / STATE, state)
        self._save_student(STUDENT)

    def _save_student(self, name: str) -> None:
        if self.folder.writes:
            save_student(self.student, self.config.output / name)

    def _load_state(self) -> None:
        path = self.config.output / STATE
        state = read_state(path)
        load_weights(self.model, state["model"], path)
        load_part(self.step, state, "optimizer's state of this model", path)
        load_part(self.best, state["best"], "best score of a run", path)
        set_rng_state(state["rng"], self.device, path)
        self.iteration = state["iteration"]


def validate(student: EDSR, pairs: list[Pair], ranks: Ranks | None = None) -> Quality:
    """Mean quality of the student over whole images, which the ranks share."""

    def score(pair: Pair) -> Quality:
        return quality(upscale(student, pair.lr), pair.hr, student.scale)

    student.eval()
    return mean_quality(ranks.map(score, pairs) if ranks else [score(pair) for pair in pairs])


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also what has no values, as meta
    except Exception as error:  # each device that is not there has its own kind
        reason = str(error).split("\n")[0]
        raise UserError(
            f"config: train.device: expected a device, got {name!r}: {reason}"
        ) from None
    return device


def _validation_sets(config: Config) -> dict[str, Pairs]:
    """The images of each validation set by its name."""
    sets = {}
    for name, (hr, lr) in config.data.validation_folders.items():
        sets[name] = load_cached(hr, lr, config.scale, config.data, config.output)
        _check_validation(sets[name], least_size(config.scale))
    return sets


def _check_validation(pairs: Pairs, least: int) -> None:
    for pair in pairs:
        if min(pair.hr.shape[:2]) < least:
            raise UserError(
                f"data: {pair.name}: expected validation images of at least {least} pixels, "
                f"got {'x'.join(str(size) for size in pair.hr.shape[:2])}"
            )
