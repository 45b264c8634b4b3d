"""Which calls the native CUDA kernels serve. All others stay with PyTorch, that is with cuDNN."""

from functools import cache

import torch
from torch import Tensor

from . import _native
from ._library import SCHEMAS
from .ops._common import dtype_name

DTYPES = (torch.bfloat16, torch.float16)
#: The tensor cores' products are 16 channels deep.
MULTIPLE = 16
#: Above it, kernels that keep all taps of 64 channels in shared memory have no advantage.
LARGEST = 256
#: The first GPUs with bfloat16 and asynchronous copies.
CAPABILITY = (8, 0)


def why_not(op: str, x: Tensor, weights: tuple[Tensor, ...], upscale_factor: int) -> str | None:
    """What a call would need to be served, and what it has; None if it is served.

    Args:
        op: name of an operator, or of something that is made of them.
        x: on a CUDA device.
        weights: of the call's convolutions. Without any, the answer is for the operator at large.
        upscale_factor: of the pixel shuffle after the convolution.
    """
    operators = _native.cuda_operators
    if op in SCHEMAS and op not in operators:
        return f"an operator with a CUDA kernel ({', '.join(sorted(operators))}), got {op}"
    if not weights:
        return None
    if x.dtype not in DTYPES:
        return f"x of dtype bfloat16 or float16 for its CUDA kernel, got {dtype_name(x.dtype)}"
    for weight in weights:
        if not all(map(_is_served, (weight.shape[0] / upscale_factor**2, weight.shape[1]))):
            return (
                f"channels in multiples of {MULTIPLE} up to {LARGEST} for its CUDA kernel, "
                f"got weight of shape {list(weight.shape)}"
            )
    if _capability(x.device) < CAPABILITY:
        return f"a GPU of compute capability 8.0, got {'.'.join(map(str, _capability(x.device)))}"
    return None


def _is_served(channels: float) -> bool:
    return channels <= LARGEST and channels % MULTIPLE == 0


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
