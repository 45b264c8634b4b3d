"""One training step of CLSD (forward, losses, backward, Adam): trainers of the same weights."""

import argparse
from contextlib import nullcontext
from typing import NamedTuple

import measure
import plain
import torch
import torch.nn.functional as F
from torch import Tensor

import clsd_fast
from cases import contest
from cases.contest import Contender

OURS = ("ours_contiguous", "ours_channels_last")
EAGER = ("eager", "eager_channels_last")
COMPILED = ("compile", "compile_channels_last")
#: Ours without autocast, beside the others with it.
OURS_FLOAT32 = "ours_float32_channels_last"
#: Weights of deep supervision and of the contrastive loss.
METHODS = {"student": (0.0, 0.0), "ds": (1.0, 0.0), "clsd": (1.0, 0.1)}
MODE = "step"
NUM_BATCHES = 4
LEARNING_RATE = 1e-4


class Case(NamedTuple):
    """The model, the size of its batches and the device.

    `patch` counts low-resolution pixels; `blocks` are the student's; `method` is one of METHODS;
    `dtype` is float32, or bf16 for forward and losses under bfloat16 autocast.
    """

    scale: int = 2
    batch: int = 4
    patch: int = 48
    blocks: int = 16
    channels: int = 64
    heads: int = 3
    head_blocks: int = 5
    contrast: str = "info_nce"
    method: str = "clsd"
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def title(self) -> str:
        student = f"{self.blocks}x{self.channels} x{self.scale}"
        heads = f"{self.heads} heads of {self.head_blocks}, {self.contrast}"
        size = f"{self.batch}x3x{self.patch}x{self.patch}"
        return f"{self.method} {student}, {heads}, {size}, {self.dtype}"

    @property
    def modes(self) -> tuple[str, ...]:
        return (MODE,)

    def names(self, mode: str, compiles: bool) -> tuple[str, ...]:
        """Of the contenders."""
        float32 = (OURS_FLOAT32,) if self.dtype == "bf16" else ()
        return (*OURS, *float32, *EAGER, *(COMPILED if compiles else ()))

    @property
    def taps(self) -> list[int]:
        """Evenly spaced, none after the last block: 5, 10, 15 at the defaults."""
        return [(self.blocks - 1) * k // self.heads for k in range(1, self.heads + 1)]


def tiny_table() -> list[Case]:
    """Whether everything runs."""
    return [Case(patch=8, blocks=2, channels=8, heads=1, head_blocks=1)]


def quick_table() -> list[Case]:
    """The figures of docs/cpu.md."""
    return [Case(scale=scale) for scale in (2, 4)]


def full_table() -> list[Case]:
    contrasts = clsd_fast.distill.CONTRASTS
    return [Case(scale=s, contrast=contrast) for s in (2, 3, 4) for contrast in contrasts]


TABLES = {"tiny": tiny_table, "quick": quick_table, "full": full_table}


def add_arguments(parser: argparse.ArgumentParser, default: Case) -> None:
    """The fields of a case, but for method, device and dtype, as options of a program."""
    parser.add_argument("--scale", type=int, default=default.scale, choices=(2, 3, 4))
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--patch", type=int, default=default.patch, help="low-resolution pixels")
    parser.add_argument("--blocks", type=int, default=default.blocks, help="of the student")
    parser.add_argument("--channels", type=int, default=default.channels)
    parser.add_argument("--heads", type=int, default=default.heads)
    parser.add_argument("--head-blocks", type=int, default=default.head_blocks)
    contrasts = clsd_fast.distill.CONTRASTS
    parser.add_argument("--contrast", default=default.contrast, choices=contrasts)


def chosen(options: argparse.Namespace) -> Case:
    """The case of a program's options."""
    values = vars(options)
    return Case(**{field: values[field] for field in Case._fields if field in values})


class Trainer:
    """One configuration: a model, its optimizer and the batches, all in one memory format.

    Args:
        name: of the configuration, one of OURS, OURS_FLOAT32, EAGER, COMPILED.
        case: what is trained, and where.
        dtype: of the weights; float32, or float64, without autocast, for the reference.
    """

    def __init__(self, name: str, case: Case, dtype: torch.dtype = torch.float32) -> None:
        layout = measure.LAYOUTS[measure.layout_of(name)]
        self.placement = {"device": case.device, "dtype": dtype, "memory_format": layout}
        autocasts = case.dtype == "bf16" and dtype == torch.float32 and name != OURS_FLOAT32
        kind = torch.device(case.device).type
        self.context = torch.autocast(kind, torch.bfloat16) if autocasts else nullcontext()
        model = our_model(case)
        self.is_ours = name.startswith("ours")
        if not self.is_ours:
            weights = model.state_dict()
            model = plain_model(case)
            model.load_state_dict(weights)
        self.model = model.to(**self.placement)
        # Not dynamic: the other configuration's strides are no reason to make these symbolic.
        compiled = name in COMPILED
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.history: list[dict[str, Tensor]] = []
        self.load(case)
        self.reset_optimizer()

    def load(self, case: Case) -> None:
        """Make the batches."""
        self.batches = [
            [image.to(**self.placement) for image in pair] for pair in make_batches(case)
        ]

    def reset_optimizer(self) -> None:
        """Drop gradients and the optimizer's state."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.optimizer.zero_grad()

    def losses(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        with self.context:
            output = self.forward(lr, hr)
        return output.losses if self.is_ours else output

    def step(self, index: int) -> None:
        """One training step on the batch of this number; its losses go to the history."""
        losses = self.losses(*self.batches[index % NUM_BATCHES])
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        self.history.append({name: loss.detach() for name, loss in losses.items()})

    def results(self) -> list[Tensor]:
        """All losses of the first batch as one vector, then the gradients, by parameters' names."""
        torch.manual_seed(0)  # of patch_nce's positions
        losses = self.losses(*self.batches[0])
        self.optimizer.zero_grad()
        losses["total"].backward()
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.requires_grad}
        values = torch.stack([losses[name].detach() for name in ("rec", "ds", "cl", "total")])
        return [values, *(gradients[name] for name in sorted(gradients))]


def our_model(case: Case, collapse: bool | None = None) -> clsd_fast.CLSD:
    """The model that every configuration has its weights from."""
    torch.manual_seed(0)
    student = clsd_fast.EDSR(case.scale, case.blocks, case.channels, collapse=collapse)
    ds_weight, contrast_weight = METHODS[case.method]
    return clsd_fast.CLSD(
        student,
        case.taps,
        case.head_blocks,
        case.contrast,
        ds_weight=ds_weight,
        contrast_weight=contrast_weight,
    )


def plain_model(case: Case) -> plain.CLSD:
    return plain.CLSD(
        case.scale,
        case.blocks,
        case.channels,
        case.taps,
        case.head_blocks,
        case.contrast,
        *METHODS[case.method],
    )


def make_batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Pairs of low- and high-resolution images in 0..255."""
    generator = torch.Generator().manual_seed(1)
    size = case.scale * case.patch
    pairs = []
    for _ in range(NUM_BATCHES):
        hr = 255 * torch.rand(case.batch, 3, size, size, generator=generator)
        pairs.append((F.avg_pool2d(hr, case.scale), hr))
    return pairs


class Contest(contest.Contest):
    """Trainers on the same batches."""

    def __init__(self, case: Case, mode: str = MODE) -> None:
        super().__init__(case, mode, torch.bfloat16 if case.dtype == "bf16" else torch.float32)

    def contender(self, name: str) -> Contender:
        trainer = Trainer(name, self.case)
        return Contender(trainer.step, trainer.results)

    def reference(self) -> list[Tensor]:
        return Trainer("eager", self.case, torch.float64).results()


def contender(case: Case, name: str) -> Contender:
    """One of the case's contenders, for a process of its own."""
    return Contest(case).contender(name)
