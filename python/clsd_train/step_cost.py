"""What a training step takes on this machine's CPU, on our kernels and in plain PyTorch."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clsd_fast import use_backend

from .build import build_model
from .config import Config
from .step import Step

LEAST_ROUNDS, MOST_ROUNDS = 3, 30


class StepCost(NamedTuple):
    """Median milliseconds of a step.

    Attributes:
        ours: as ``clsd train`` runs it.
        pytorch: in plain PyTorch, in the faster memory format.
        pytorch_layout: which that is.
    """

    ours: float
    pytorch: float
    pytorch_layout: str


def measure_step(config: Config, seconds: float) -> StepCost:
    """Time steps of a configuration on random images, batches not included.

    All ways take turns, so that a slow minute of the machine is everybody's.

    Args:
        config: of the model, the losses and the batch; its data and device do not matter.
        seconds: how long, after a warm-up; at least LEAST_ROUNDS steps of each are timed.
    """
    batch = _random_batch(config)
    layouts: dict[str, Callable[[nn.Module], nn.Module]] = {
        "channels_last": _to_channels_last,
        "contiguous": _Contiguous,
    }
    ways = {"ours": ("auto", _make_step(config, _to_channels_last))}
    ways |= {name: ("reference", _make_step(config, lay)) for name, lay in layouts.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for backend, step in ways.values():  # makes buffers
        _milliseconds(step, batch, backend)
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, (backend, step) in ways.items():
            times[name].append(_milliseconds(step, batch, backend))
    medians = {name: statistics.median(values) for name, values in times.items()}
    layout = min(layouts, key=medians.__getitem__)
    return StepCost(medians["ours"], medians[layout], layout)


def _random_batch(config: Config) -> list[Tensor]:
    """LR and HR images, uint8 [B, h, w, 3]."""
    generator = torch.Generator().manual_seed(0)
    size = config.data.patch_size
    shapes = [(config.train.batch_size, side, side, 3) for side in (size, config.scale * size)]
    options: Any = {"dtype": torch.uint8, "generator": generator}
    return [torch.randint(256, shape, **options) for shape in shapes]


class _Contiguous(nn.Module):
    """The model on contiguous images; those of a batch are channels_last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, lr: Tensor, hr: Tensor) -> Any:
        return self.model(lr.contiguous(), hr.contiguous())


def _to_channels_last(model: nn.Module) -> nn.Module:
    # PyTorch does not declare this argument without others.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _make_step(config: Config, lay: Callable[[nn.Module], nn.Module]) -> Step:
    """A step whose learning rate is 0: it does all of the work, on weights that stay."""
    model = build_model(config)
    return Step(lay(model).train(), model.student, config.train)


def _milliseconds(step: Step, batch: list[Tensor], backend: str) -> float:
    with use_backend(backend):
        started = time.perf_counter()
        step.update(*batch)
        return 1000 * (time.perf_counter() - started)
