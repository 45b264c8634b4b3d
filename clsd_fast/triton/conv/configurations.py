"""Which sizes of blocks a call gets: those of a table, so that nothing is timed at a first call."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._launch import block
from .table import CONVOLVE, OTHERS, WEIGHT_GRADIENT, Sizes


class Configuration(NamedTuple):
    """Of a program: rows and columns of pixels, channels of inputs and of outputs, warps, and
    stages of the loop's loads."""

    block_y: int
    block_x: int
    block_c: int
    block_k: int
    num_warps: int
    num_stages: int


def architecture(device: torch.device) -> str:
    """sm_90, gfx942, ... of a GPU; of another device, ``OTHERS``."""
    if device.type != "cuda":
        return OTHERS
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def arithmetic(x: Tensor) -> str:
    """16-bit, tf32, float32 or float64.

    TF32 is for float32 where ``torch.set_float32_matmul_precision`` allows it, on NVIDIA's GPUs:
    AMD's multiply float32 as it is.
    """
    if x.element_size() == 2:
        return "16-bit"
    may_be_tf32 = torch.get_float32_matmul_precision() != "highest"
    if x.dtype == torch.float32 and may_be_tf32 and not architecture(x.device).startswith("gfx"):
        return "tf32"
    return str(x.dtype).removeprefix("torch.")


def _options(table: dict[str, dict[str, Sizes]], x: Tensor, channels: int, outputs: int) -> dict:
    kind = arithmetic(x)
    sizes = table.get(architecture(x.device), table[OTHERS])
    configuration = Configuration(*sizes[kind])
    fitting = configuration._replace(
        block_c=block(channels, configuration.block_c),
        block_k=block(outputs, configuration.block_k),
    )
    return {**fitting._asdict(), "tf32": kind == "tf32"}


def convolution_options(x: Tensor, channels: int, outputs: int) -> dict[str, Any]:
    """Options of the kernel that convolves x from so many channels to so many."""
    return _options(CONVOLVE, x, channels, outputs)


def weight_gradient_options(x: Tensor, channels: int, outputs: int) -> dict[str, Any]:
    """Options of the kernel that differentiates it by the weight."""
    return _options(WEIGHT_GRADIENT, x, channels, outputs)
