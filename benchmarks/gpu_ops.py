"""The operators on a GPU, one by one: what `gpu.py` times of them.

A problem is an operator and its shapes; its modes are ``forward`` (no gradient is recorded),
``forward_backward`` (all gradients), and for a convolution ``dgrad`` and ``wgrad`` (the operator's
backward, for x alone and for weight and bias).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cases import contest, contrast
from torch import Tensor

import clsd_fast
from clsd_fast._tail_axes import AXES, STAGES
from clsd_fast.backend import implementation


class Operands(NamedTuple):
    """Leaves of autograd and gradients of the output, one set a rotation, and shared weights."""

    inputs: list[list[Tensor]]
    grads: list[Tensor]
    parameters: list[Tensor]

    def first_in_double(self) -> "Operands":
        def double(tensors):
            return [tensor.detach().double().requires_grad_() for tensor in tensors]

        grads = [self.grads[0].double()]
        return Operands([double(self.inputs[0])], grads, double(self.parameters))


def plain_block(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = F.relu(F.conv2d(x, w1, b1, padding=1), inplace=True)
    return F.conv2d(hidden, w2, b2, padding=1).add_(x)


def run(function: Callable, mode: str, operands: Operands) -> Callable[[int], list[Tensor]]:
    """A function from the number of a set of operands to the results of the mode."""
    inputs, grads, parameters = operands
    return contest.make_call(lambda *x: function(*x, *parameters), inputs, grads, parameters, mode)


def random(shape: tuple[int, ...], scale: float, dtype: torch.dtype, device: object) -> Tensor:
    tensor = (scale * torch.randn(shape, device=device)).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


class Convolution(NamedTuple):
    """conv3x3, residual_block or pixel_shuffle_upsample in bfloat16, channels_last."""

    op: str
    shape: tuple[int, int, int, int]
    outputs: int
    factor: int = 1
    dtype: torch.dtype = torch.bfloat16
    #: Of the gate: what is timed is held to the rule itself.
    limit: float = 1.0

    @property
    def title(self) -> str:
        factor = f", x{self.factor}" if self.factor > 1 else ""
        return f"{self.op} {self.shape[1]} to {self.outputs}{factor}, {list(self.shape)}"

    @property
    def modes(self) -> tuple[str, ...]:
        backwards = ("dgrad", "wgrad") if self.op == "conv3x3" else ()
        return ("forward", *backwards, "forward_backward")

    def operands(self, count: int, device: object) -> Operands:
        batch, channels, height, width = self.shape
        square = self.factor**2
        widths = [(self.outputs * square, channels)]
        if self.op == "residual_block":
            widths.append((channels, self.outputs))
        parameters = []
        for outputs, inputs in widths:
            scale = (9 * inputs) ** -0.5
            parameters.append(random((outputs, inputs, 3, 3), scale, self.dtype, device))
            parameters.append(random((outputs,), 1.0, self.dtype, device))
        out = (batch, self.outputs, height * self.factor, width * self.factor)
        out = self.shape if self.op == "residual_block" else out
        inputs = [[random(self.shape, 1.0, self.dtype, device)] for _ in range(count)]
        for leaf in (*parameters, *(x for (x,) in inputs)):
            leaf.requires_grad_()
        grads = [random(out, 1.0, self.dtype, device) for _ in range(count)]
        return Operands(inputs, grads, parameters)

    def function(self, side: str) -> Callable[..., Tensor]:
        ours = {
            "conv3x3": clsd_fast.conv3x3,
            "residual_block": clsd_fast.residual_block,
            "pixel_shuffle_upsample": self._our_upsample,
        }
        theirs = {
            "conv3x3": self._convolution,
            "residual_block": plain_block,
            "pixel_shuffle_upsample": self._upsample,
        }
        return (ours if side == "ours" else theirs)[self.op]

    def _our_upsample(self, *tensors: Tensor) -> Tensor:
        return clsd_fast.pixel_shuffle_upsample(*tensors, self.factor)

    def _convolution(self, *tensors: Tensor) -> Tensor:
        return F.conv2d(*tensors, padding=1)

    def _upsample(self, *tensors: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(*tensors, padding=1), self.factor)

    def call(self, side: str, mode: str, operands: Operands, wrap: Callable = lambda f: f):
        """The mode by ours or by PyTorch; `wrap` may compile the function."""
        if mode not in ("dgrad", "wgrad"):
            return run(wrap(self.function(side)), mode, operands)
        mask = [mode == "dgrad", mode == "wgrad", mode == "wgrad"]
        weight = operands.parameters[0].detach()

        def ours(grad: Tensor, x: Tensor) -> tuple:
            return torch.ops.clsd_fast.conv3x3_backward(grad, x, weight, 1.0, *mask)

        def theirs(grad: Tensor, x: Tensor) -> tuple:
            sizes, pair = [weight.shape[0]], [1, 1]
            geometry = (sizes, pair, pair, pair, False, [0, 0], 1, mask)
            return torch.ops.aten.convolution_backward(grad, x, weight, *geometry)

        def backward(index: int) -> list[Tensor]:
            x = operands.inputs[index][0].detach()
            grads = (ours if side == "ours" else theirs)(operands.grads[index], x)
            return [grad for grad, needed in zip(grads, mask, strict=True) if needed]

        return backward

    def read(self, mode: str, operands: Operands) -> list[Tensor]:
        """The tensors that a call of the mode cannot do without."""
        x, grad, weight = operands.inputs[0], operands.grads[0], operands.parameters[:1]
        return {
            "forward": [*x, *operands.parameters],
            "forward_backward": [*x, grad, *operands.parameters],
            "dgrad": [grad, *weight],
            "wgrad": [grad, *x],
        }[mode]

    def kernel(self, operands: Operands) -> str:
        """The backend that serves ours."""
        weights = operands.parameters[::2]
        x = operands.inputs[0][0]
        return implementation(self.op, x, *weights, upscale_factor=self.factor)


class Tail(NamedTuple):
    """upsample_tail to 3 channels in bfloat16, channels_last, against its layers.

    What is counted is the composed map, without composing it: 1/12 to 1/15 of the layers' FLOPs.
    """

    factor: int
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.bfloat16
    limit: float = 1.0
    modes: tuple[str, ...] = ("forward", "forward_backward")

    @property
    def title(self) -> str:
        return f"upsample_tail {self.shape[1]} to 3, x{self.factor}, {list(self.shape)}"

    def operands(self, count: int, device: object) -> Operands:
        batch, channels, height, width = self.shape
        widths = [channels * stage**2 for stage in STAGES[self.factor]]
        scale = (9 * channels) ** -0.5
        parameters = []
        for outputs in (*widths, 3):
            parameters.append(random((outputs, channels, 3, 3), scale, self.dtype, device))
            parameters.append(random((outputs,), 1.0, self.dtype, device))
        out = (batch, 3, height * self.factor, width * self.factor)
        inputs = [[random(self.shape, 1.0, self.dtype, device)] for _ in range(count)]
        for leaf in (*parameters, *(x for (x,) in inputs)):
            leaf.requires_grad_()
        grads = [random(out, 1.0, self.dtype, device) for _ in range(count)]
        return Operands(inputs, grads, parameters)

    def _ours(self, x: Tensor, *parameters: Tensor) -> Tensor:
        *ups, out_weight, out_bias = parameters
        return clsd_fast.upsample_tail(x, ups[::2], ups[1::2], out_weight, out_bias, self.factor)

    def _layers(self, x: Tensor, *parameters: Tensor) -> Tensor:
        *ups, out_weight, out_bias = parameters
        for stage, weight, bias in zip(STAGES[self.factor], ups[::2], ups[1::2], strict=True):
            x = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), stage)
        return F.conv2d(x, out_weight, out_bias, padding=1)

    def _composed(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As many operations, on a weight that is not composed, but depends on all parameters."""
        axis = AXES[self.factor][0]
        taps = axis.segments[0].length
        weight = sum(p.sum() for p in parameters).expand(x.shape[1], 3, taps, taps)
        return F.conv_transpose2d(x, weight, stride=self.factor, padding=axis.padding)

    def call(self, side: str, mode: str, operands: Operands, wrap: Callable = lambda f: f):
        functions = {"ours": self._ours, "counted": self._composed}
        return run(wrap(functions.get(side, self._layers)), mode, operands)

    def read(self, mode: str, operands: Operands) -> list[Tensor]:
        grads = operands.grads[:1] if mode != "forward" else []
        return [*operands.inputs[0], *grads, *operands.parameters]

    def kernel(self, operands: Operands) -> str:
        return implementation("upsample_tail", operands.inputs[0][0])


class Contrast(NamedTuple):
    """A contrastive operator in float32."""

    case: contrast.Case
    dtype: torch.dtype = torch.float32
    limit: float = 1.0

    @property
    def modes(self) -> tuple[str, ...]:
        return self.case.modes

    @property
    def title(self) -> str:
        return self.case.title

    def operands(self, count: int, device: object) -> Operands:
        inputs = [
            [random(self.case.shape, 1.0, self.dtype, device).requires_grad_() for _ in range(2)]
            for _ in range(count)
        ]
        rows = self.case.rows
        out = (rows, rows) if self.case.op == "pairwise_similarity" else ()
        return Operands(inputs, [random(out, 1.0, self.dtype, device) for _ in range(count)], [])

    def call(self, side: str, mode: str, operands: Operands, wrap: Callable = lambda f: f):
        function = contrast.functions(self.case)["ours" if side == "ours" else "eager"]
        return run(wrap(function), mode, operands)

    def read(self, mode: str, operands: Operands) -> list[Tensor]:
        return [*operands.inputs[0], *(operands.grads[:1] if mode != "forward" else [])]

    def kernel(self, operands: Operands) -> str:
        return implementation(self.case.op, operands.inputs[0][0])


def table() -> dict[str, list]:
    """Problems by operator: the layers of a training step of batch 16, patch 48, x2; and others."""
    patch = (16, 64, 48, 48)
    cases = [
        contrast.Case("info_nce", 3, 16, 128),
        contrast.Case("info_nce", 1, 4096, 128),
        contrast.Case("distance_ratio_loss", 1, 16, 64 * 48 * 48),
        contrast.Case("pairwise_similarity", 1, 4096, 128, "cosine"),
        contrast.Case("pairwise_similarity", 1, 1024, 128, "l1"),
    ]
    return {
        "conv3x3": [
            Convolution("conv3x3", patch, 64),
            Convolution("conv3x3", (16, 3, 48, 48), 64),
            Convolution("conv3x3", (16, 64, 96, 96), 3),
        ],
        "residual_block": [Convolution("residual_block", patch, 64)],
        "pixel_shuffle_upsample": [
            Convolution("pixel_shuffle_upsample", patch, 64, factor) for factor in (2, 3)
        ],
        "upsample_tail": [Tail(factor, patch) for factor in (2, 3, 4)],
        "contrastive": [Contrast(case) for case in cases],
    }
