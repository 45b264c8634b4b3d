"""The training loop."""

import math
import shlex
import time
from typing import Any, NoReturn

import numpy as np
import torch

from clsd_fast import EDSR

from .board import Board
from .build import build_model
from .checkpoint import load_optimizer, load_weights, read_state, save_student, write_state
from .config import Config, TrainConfig, changes
from .data import Pair, Pairs, load_cached, load_training_pairs
from .errors import UserError, shorten, tell
from .history import History
from .images import images_to_tensor
from .interrupt import Interrupted, NoteSignal
from .metrics import Quality, least_size, mean_quality, quality
from .progress import Progress
from .run_folder import HISTORY, STATE, STUDENT, TENSORBOARD, RunFolder
from .sampler import Prefetcher, make_sampler
from .upscale import upscale


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
        self.folder = RunFolder(config.output, resume)
        try:
            self._prepare(resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool) -> None:
        config, options = self.config, self.config.train
        self.device = _device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        self.model = build_model(config).to(self.device)
        # PyTorch does not declare this argument beside another.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            options.learning_rate,
            options.betas,
            options.eps,
            fused=True,
        )
        if resume and self.folder.has_state:
            self._load_state()
        self.train_pairs = load_training_pairs(config.data, config.scale, config.output)
        self.val_pairs = _validation_pairs(config)
        saved = self.folder.saved_config() if resume else None
        self.folder.write_config(config)
        self.history = History(config.output / HISTORY, self.iteration)
        if saved:
            if self.iteration == 0:
                tell(f"no checkpoint is in {config.output}, its run begins again")
            self._tell_changes(changes(saved, config))
        tell(self.train_pairs.summary("training"))
        if self.val_pairs:
            tell(self.val_pairs.summary("validation"))
        if self.iteration >= options.iterations:
            tell(f"nothing is left of {options.iterations} iterations, {self.iteration} are done")

    def _tell_changes(self, changed: dict[str, list[Any]]) -> None:
        for key, (old, new) in changed.items():
            tell(f"{key}: {shorten(old)} -> {shorten(new)}")
        if changed:
            self.history.add({"kind": "settings", "iteration": self.iteration, "changed": changed})

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
        return self.history.entries

    def _train(self) -> None:
        options = self.config.train
        sampler = make_sampler(
            self.train_pairs,
            self.config.scale,
            self.config.data.patch_size,
            options.batch_size,
            options.seed,
        )
        batches = Prefetcher(sampler, self.iteration + 1)
        progress = Progress(self.iteration, options.iterations)
        board = Board(self.config.output / TENSORBOARD, self.iteration + 1)
        try:
            with progress, board, NoteSignal() as noted:
                while self.iteration < options.iterations:
                    self._iterate(batches, progress, board)
                    if noted.signum is not None:
                        self._interrupt(noted.signum)
        finally:
            batches.close()

    def _interrupt(self, signum: int) -> NoReturn:
        self.save()
        output = self.config.output
        raise Interrupted(
            signum,
            f"interrupted, iteration {self.iteration} is saved "
            f"(clsd train {shlex.quote(f'output={output}')} --resume continues)",
        )

    def _iterate(self, batches: Prefetcher, progress: Progress, board: Board) -> None:
        options = self.config.train
        started = time.perf_counter()
        losses = self._step(*batches.take())
        seconds = time.perf_counter() - started
        last = self.iteration == options.iterations
        if self.iteration % options.log_every == 0 or self.iteration == 1 or last:
            rate = self.optimizer.param_groups[0]["lr"]
            entry = {**losses, "learning_rate": rate, "step_seconds": seconds}
            self._log("train", entry, board)
        if self.val_pairs and (self.iteration % options.eval_every == 0 or last):
            result = validate(self.model.student, self.val_pairs)
            self._log("val", result._asdict(), board)
            progress.psnr = result.psnr
        if self.iteration % options.save_every == 0 or last:
            self.save()
        progress.update(self.iteration, losses["total"])

    def _step(self, lr_images: np.ndarray, hr_images: np.ndarray) -> dict[str, float]:
        self.model.train()
        lr = images_to_tensor(lr_images, self.device)
        hr = images_to_tensor(hr_images, self.device)
        losses = self.model(lr, hr).losses
        values = {name: loss.item() for name, loss in losses.items()}
        self.iteration += 1
        if not math.isfinite(values["total"]):
            self._stop("a finite loss", values["total"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        self.optimizer.step()
        return values

    def _stop(self, expected: str, got: object) -> NoReturn:
        raise UserError(
            f"train: expected {expected}, got {got} at iteration {self.iteration}; "
            f"{self._kept()} (lower train.learning_rate?)"
        )

    def _kept(self) -> str:
        return "the last checkpoint is kept" if self.folder.has_state else "nothing was saved yet"

    def _log(self, kind: str, values: dict[str, float], board: Board) -> None:
        self.history.add({"kind": kind, "iteration": self.iteration, **values})
        board.add(kind, values, self.iteration)

    def save(self) -> None:
        """Write the student's weights and the run's state, each complete or not at all.

        Raises:
            UserError: if a weight is not finite. The last checkpoint stays as it was.
        """
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self._stop("finite weights", "infinity or NaN")
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "config": self.config.with_absolute_paths().model_dump(mode="json"),
        }
        output = self.config.output
        write_state(output / STATE, state)
        save_student(self.model.student, output / STUDENT)

    def _load_state(self) -> None:
        path, options = self.config.output / STATE, self.config.train
        state = read_state(path)
        load_weights(self.model, state["model"], path)
        load_optimizer(self.optimizer, state["optimizer"], path)
        for group in self.optimizer.param_groups:  # the rate is set at each step
            group.update(betas=options.betas, eps=options.eps)
        torch.set_rng_state(state["rng"])
        self.iteration = state["iteration"]


def learning_rate(options: TrainConfig, iteration: int) -> float:
    """The rate of an iteration, counted from 1.

    A function of the configuration alone: a resumed run cannot inherit another run's schedule.
    """
    milestones = (round(fraction * options.iterations) for fraction in options.milestones)
    passed = sum(milestone < iteration for milestone in milestones)
    return options.learning_rate * options.gamma**passed


def validate(student: EDSR, pairs: list[Pair]) -> Quality:
    """Mean quality of the student over whole images."""
    student.eval()
    return mean_quality([quality(upscale(student, p.lr), p.hr, student.scale) for p in pairs])


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


def _validation_pairs(config: Config) -> Pairs:
    data = config.data
    if not data.val:
        return Pairs()
    pairs = load_cached(data.val, data.val_lr, config.scale, data, config.output)
    least = least_size(config.scale)
    for pair in pairs:
        if min(pair.hr.shape[:2]) < least:
            raise UserError(
                f"data: {pair.name}: expected validation images of at least {least} pixels, "
                f"got {'x'.join(str(size) for size in pair.hr.shape[:2])}"
            )
    return pairs
