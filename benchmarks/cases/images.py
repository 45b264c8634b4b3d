"""Image operators and inference on a whole image: modules with the same weights."""

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import onednn
import plain
import torch
from torch import Tensor, nn

import clsd_fast
from cases import contest
from cases.contest import FORWARD, FORWARD_BACKWARD, Contender

NUM_INPUTS = 4
#: Side of the piece of an image that inference is checked on: PyTorch's convolutions in float64
#: would take some 5 GB for a whole one.
CHECKED_SIZE = 128

OURS = {
    "conv3x3": clsd_fast.nn.Conv3x3,
    "residual_block": clsd_fast.nn.ResidualBlock,
    "pixel_shuffle_upsample": clsd_fast.nn.PixelShuffleUpsampler,
    "upsample_tail": clsd_fast.nn.UpsampleTail,
    "inference": clsd_fast.EDSR,
}
PLAIN = {
    "conv3x3": plain.conv3x3,
    "residual_block": plain.ResidualBlock,
    "pixel_shuffle_upsample": plain.Upsampler,
    "upsample_tail": plain.make_tail,
    "inference": plain.EDSR,
}


class Case(NamedTuple):
    """What is measured: an entry of OURS and PLAIN, its arguments and the shape of the input."""

    op: str
    arguments: tuple[int, ...]
    shape: tuple[int, int, int, int]

    @property
    def title(self) -> str:
        arguments = ", ".join(map(str, self.arguments))
        return f"{self.op}({arguments}) {'x'.join(map(str, self.shape))}"

    @property
    def modes(self) -> tuple[str, ...]:
        return (FORWARD,) if self.op == "inference" else (FORWARD, FORWARD_BACKWARD)

    def names(
        self, mode: str, compiles: bool, dtype: torch.dtype = torch.float32
    ) -> tuple[str, ...]:
        """Of the contenders, each in both memory formats."""
        fuses = mode == FORWARD and onednn.packs(dtype)
        return (
            *("ours_contiguous", "ours_channels_last", "eager", "eager_channels_last"),
            *(("compile", "compile_channels_last") if compiles else ()),
            *(("onednn", "onednn_channels_last") if fuses else ()),
        )


def tiny_table() -> list[Case]:
    """Whether everything runs."""
    return [
        Case("residual_block", (8,), (2, 8, 6, 7)),
        Case("pixel_shuffle_upsample", (4, 8), (2, 8, 6, 7)),
        Case("upsample_tail", (4, 8), (2, 8, 6, 7)),
        Case("conv3x3", (3, 8), (2, 3, 6, 7)),
        Case("inference", (3, 2, 8), (1, 3, 9, 8)),
    ]


def quick_table() -> list[Case]:
    """What a training step at batch 4 and patch 48 calls, and images."""
    return [
        Case("residual_block", (64,), (4, 64, 48, 48)),
        Case("pixel_shuffle_upsample", (2, 64), (4, 64, 48, 48)),
        Case("upsample_tail", (2, 64), (4, 64, 48, 48)),
        Case("upsample_tail", (4, 64), (4, 64, 48, 48)),
        Case("conv3x3", (3, 64), (4, 3, 48, 48)),
        Case("conv3x3", (64, 3), (4, 64, 96, 96)),
        Case("inference", (2, 16, 64), (1, 3, 128, 128)),
        Case("inference", (2, 16, 64), (1, 3, 512, 512)),
    ]


def full_table() -> list[Case]:
    batches, sizes, channels, scales = (1, 4, 16), (24, 48, 96, 128), (32, 48, 64, 128), (2, 3, 4)
    product = itertools.product
    return [
        *(
            Case("residual_block", (c,), (n, c, size, size))
            for n, size, c in product(batches, sizes, channels)
        ),
        *(
            Case(op, (scale, 64), (n, 64, size, size))
            for op in ("pixel_shuffle_upsample", "upsample_tail")
            for scale, n, size in product(scales, batches, (24, 48, 96))
        ),
        *(
            Case("conv3x3", (c, k), (n, c, size, size))
            for (c, k), n, size in product(((3, 64), (64, 64), (64, 3)), batches, (48, 96))
        ),
        *(
            Case("inference", (scale, 16, 64), (1, 3, size, size))
            for scale, size in product(scales, (128, 512))
        ),
    ]


def channels_table() -> list[Case]:
    """Convolutions of numbers of channels that are few, or no multiple of 8, and some that are."""
    channels = (5, 8, 12, 15, 17, 20, 24, 36, 46, 50, 52, 60, 62, 64)
    return [Case("conv3x3", (c, c), (4, c, 48, 48)) for c in channels]


TABLES = {
    "tiny": tiny_table,
    "quick": quick_table,
    "full": full_table,
    "channels": channels_table,
}


class Inputs(NamedTuple):
    """Inputs that calls rotate over, and gradients of the outputs."""

    x: list[Tensor]
    grad: list[Tensor]

    def to(self, **placement: Any) -> "Inputs":
        """Copies as leaves of autograd."""
        x = [t.detach().to(**placement).requires_grad_() for t in self.x]
        return Inputs(x, [t.to(**placement) for t in self.grad])


def make_inputs(case: Case, mode: str, module: nn.Module, seed: int) -> Inputs:
    """Standard normal features, or images in 0..255; gradients if the mode has any."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if case.op == "inference" else torch.randn
    scale = 255 if case.op == "inference" else 1
    x = [scale * draw(case.shape, generator=generator) for _ in range(NUM_INPUTS)]
    if mode == FORWARD:
        return Inputs(x, [])
    with torch.no_grad():
        shape = module(x[0]).shape
    return Inputs(x, [torch.randn(shape, generator=generator) for _ in range(NUM_INPUTS)])


def make_call(module: nn.Module, inputs: Inputs, mode: str) -> Callable[[int], list[Tensor]]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return contest.make_call(module, [[x] for x in inputs.x], inputs.grad, parameters, mode)


class Contest(contest.Contest):
    """Modules with the same weights.

    Args:
        case: of this module.
        mode: ``forward`` (no gradient is recorded) or ``forward_backward`` (the gradients of the
            input and of every parameter).
        dtype: of all tensors but the reference's, which are the same numbers.
        seed: of all numbers.
    """

    def __init__(
        self, case: Case, mode: str, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        super().__init__(case, mode, dtype)
        torch.manual_seed(seed)
        self.ours, self.eager = OURS[case.op](*case.arguments), PLAIN[case.op](*case.arguments)
        self.eager.load_state_dict(self.ours.state_dict())
        self.inputs = make_inputs(case, mode, self.eager, seed + 1).to(dtype=dtype)
        for module in (self.ours, self.eager):
            module.to(dtype)
        self.by_layout = {
            name: self.inputs.to(memory_format=layout) for name, layout in measure.LAYOUTS.items()
        }

    def contender(self, name: str) -> Contender:
        layout = measure.layout_of(name)
        module = copy.deepcopy(self.ours if name.startswith("ours") else self.eager)
        module = module.to(memory_format=measure.LAYOUTS[layout])
        if name.startswith("compile"):
            module = contest.compiled(module)
        elif name.startswith("onednn"):
            module = onednn.fused(module)
        call = make_call(module, self.by_layout[layout], self.mode)
        return Contender(call, lambda: self.checked(call(0)))

    def reference(self) -> list[Tensor]:
        x, grad = (tensors[:1] for tensors in self.inputs)
        if self.case.op == "inference":
            x = [image[..., :CHECKED_SIZE, :CHECKED_SIZE] for image in x]
        inputs = Inputs(x, grad).to(dtype=torch.float64)
        return self.checked(make_call(copy.deepcopy(self.eager).double(), inputs, self.mode)(0))

    def checked(self, results: list[Tensor]) -> list[Tensor]:
        """All results, or of an image the part that the piece which is checked determines."""
        if self.case.op != "inference":
            return results
        scale, num_blocks, _ = self.case.arguments
        reach = 2 * num_blocks + 4  # a pixel a convolution: blocks, head, end and two of the tail
        size = scale * (CHECKED_SIZE - reach)
        return [image[..., :size, :size] for image in results]
