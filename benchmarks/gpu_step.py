"""A training step of CLSD on a GPU: what `gpu.py` times of it.

The step is that of `cases.step`, with fused Adam for everybody and all images channels_last:

    ours, eager      clsd_fast.CLSD and plain.CLSD
    *_graph          the same, the whole step in one CUDA graph, the batch copied into its memory
    compile          torch.compile of plain.CLSD
    max_autotune     the same with mode="max-autotune", whose CUDA graphs are PyTorch's own
"""

from collections.abc import Callable
from functools import cache

import gpu_measure
import measure
import torch
from cases import step
from torch import Tensor

BASES = {
    "ours": "ours_channels_last",
    "eager": "eager_channels_last",
    "compile": "compile_channels_last",
    "max_autotune": "eager_channels_last",  # compiled below, in its mode
}


class Trainer(step.Trainer):
    """One configuration of BASES.

    Args:
        name: of the configuration.
        case: what is trained, and where.
        dtype: of the weights, as of `cases.step`.
    """

    def __init__(self, name: str, case: step.Case, dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(case.device)
        super().__init__(BASES[name], case, dtype)
        self.has_own_graphs = name == "max_autotune"
        if self.has_own_graphs:
            self.forward = torch.compile(self.model, mode="max-autotune", dynamic=False)

    def reset_optimizer(self) -> None:
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=step.LEARNING_RATE,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.optimizer.zero_grad()

    def train(self, lr: Tensor, hr: Tensor) -> None:
        if self.has_own_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        # First, because max_autotune's gradients lie in memory that its next forward writes.
        self.optimizer.zero_grad()
        self.losses(lr, hr)["total"].backward()
        self.optimizer.step()

    def step(self, index: int) -> None:
        self.train(*self.batches[index % step.NUM_BATCHES])


def captured(trainer: Trainer) -> Callable[[int], None]:
    """The trainer's step as one CUDA graph."""
    batch = [image.clone() for image in trainer.batches[0]]
    graph = gpu_measure.captured(lambda index: trainer.train(*batch))

    def run(index: int) -> None:
        for image, source in zip(batch, trainer.batches[index % step.NUM_BATCHES], strict=True):
            image.copy_(source)
        graph(index)

    return run


class Trainers:
    """The steps of configurations. One and its CUDA graph train the same weights: it is compiled
    once."""

    def __init__(self, case: step.Case) -> None:
        self.trainer = cache(lambda kind: Trainer(kind, case))

    def call(self, name: str) -> gpu_measure.Call:
        trainer = self.trainer(name.removesuffix(gpu_measure.GRAPH))
        return captured(trainer) if name.endswith(gpu_measure.GRAPH) else trainer.step


def correctness(case: step.Case) -> float:
    """`measure.error_over_bound` of ours against the plain model in float64."""
    reference = Trainer("eager", case, torch.float64).results()
    ours, theirs = (Trainer(name, case).results() for name in ("ours", "eager"))
    return measure.error_over_bound(ours, reference, theirs, torch.bfloat16)


def flops(case: step.Case) -> int:
    """Of a forward and backward of the plain model."""
    trainer = step.Trainer("eager_channels_last", case._replace(device="meta", dtype="float32"))
    return gpu_measure.flops_of(
        lambda index: trainer.losses(*trainer.batches[0])["total"].backward()
    )
