"""The training loop."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from clsd_fast import EDSR

from .build import build_model
from .checkpoint import load_weights, read_torch, save_student, write_atomically
from .config import Config, TrainConfig
from .data import Pair, Pairs, load_cached, load_training_pairs
from .errors import UserError
from .images import images_to_tensor
from .metrics import Quality, least_size, mean_quality, quality
from .progress import Progress
from .sampler import Prefetcher, make_sampler
from .upscale import upscale

STUDENT, STATE, HISTORY, CONFIG = "student.safetensors", "state.pt", "history.jsonl", "config.yaml"


class Run:
    """One training run: model, optimizer, data and the files under ``config.output``.

    Nothing is written before everything that the configuration names is read and checked.

    Args:
        config: the run.
        resume: continue from ``state.pt`` in the output folder, bit-exactly.

    Raises:
        UserError: if data, options or the output folder do not fit.
    """

    def __init__(self, config: Config, resume: bool = False) -> None:
        self.config = config
        options, output = config.train, config.output
        check_output(output, resume)
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
        self.iteration = 0
        if resume:
            self._load_state()
        self.train_pairs = load_training_pairs(config.data, config.scale, config.output)
        self.val_pairs = _validation_pairs(config)
        output.mkdir(parents=True, exist_ok=True)
        (output / CONFIG).write_text(config.to_yaml())
        self.history = History(output / HISTORY, self.iteration)
        print(f"clsd: {self.train_pairs.summary('training')}", file=sys.stderr)
        if self.val_pairs:
            print(f"clsd: {self.val_pairs.summary('validation')}", file=sys.stderr)

    def train(self) -> list[dict[str, Any]]:
        """Train to the last iteration; returns the history, as in ``history.jsonl``.

        Raises:
            UserError: if the loss is not finite. The last checkpoint stays as it was.
        """
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
        try:
            with progress, SummaryWriter(self.config.output / "tensorboard") as writer:
                while self.iteration < options.iterations:
                    self._iterate(batches, progress, writer)
        finally:
            batches.close()
        return self.history.entries

    def _iterate(self, batches: Prefetcher, progress: Progress, writer: SummaryWriter) -> None:
        options = self.config.train
        started = time.perf_counter()
        losses = self._step(*batches.take())
        seconds = time.perf_counter() - started
        last = self.iteration == options.iterations
        if self.iteration % options.log_every == 0 or self.iteration == 1 or last:
            rate = self.optimizer.param_groups[0]["lr"]
            entry = {**losses, "learning_rate": rate, "step_seconds": seconds}
            self._log("train", entry, writer)
        if self.val_pairs and (self.iteration % options.eval_every == 0 or last):
            result = validate(self.model.student, self.val_pairs)
            self._log("val", result._asdict(), writer)
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
            "the last checkpoint is kept (lower train.learning_rate?)"
        )

    def _log(self, kind: str, values: dict[str, float], writer: SummaryWriter) -> None:
        self.history.add({"kind": kind, "iteration": self.iteration, **values})
        for name, value in values.items():
            writer.add_scalar(f"{kind}/{name}", value, self.iteration)

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
        }
        output = self.config.output
        write_atomically(output / STATE, lambda path: torch.save(state, path))
        save_student(self.model.student, output / STUDENT)

    def _load_state(self) -> None:
        path = self.config.output / STATE
        state = read_torch(path)
        load_weights(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.iteration = state["iteration"]


class History:
    """A list of entries that is also a file of JSON lines; a resumed run cuts off its future."""

    def __init__(self, path: Path, last_iteration: int) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        past = [json.loads(line) for line in lines]
        self.entries = [entry for entry in past if entry["iteration"] <= last_iteration]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write_atomically(path, lambda scratch: scratch.write_text(text))

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


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


def check_output(output: Path, resume: bool) -> None:
    """Refuse a folder that holds something, unless its run is to be continued."""
    if resume:
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"train: expected an empty or new output folder, got {output} "
            "(--resume continues its run)"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
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
