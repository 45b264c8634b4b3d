"""Which calls the native CUDA kernels serve. All others stay with PyTorch, that is with cuDNN."""

import torch
from torch import Tensor

from . import native

DTYPES = (torch.bfloat16, torch.float16)
#: The tensor cores' products are 16 channels deep: ``kChannelMultiple`` of csrc/cuda/convolution.h.
MULTIPLE = 16
#: Colours: images may have so few channels on one side of a convolution, ``kFewChannels`` there.
FEW = 3
#: Above it, kernels that keep all taps of 64 channels in shared memory have no advantage:
#: ``kLargestChannels``.
LARGEST = 256
#: The first GPUs with bfloat16 and asynchronous copies.
CAPABILITY = (8, 0)


def why_not(op: str, x: Tensor, weights: tuple[Tensor, ...], upscale_factor: int) -> str | None:
    """What a call would need to be served, and what it has; None if it is served.

    Args:
        op: name of an operator.
        x: on a CUDA device.
        weights: of the call's convolutions. Without any, the answer is for the operator at large.
        upscale_factor: of the pixel shuffle after the convolution.
    """
    operators = native.cuda_operators
    if op not in operators:
        return f"an operator with a CUDA kernel ({', '.join(sorted(operators))}), got {op}"
    if not weights:
        return None
    if x.dtype not in DTYPES:
        got = str(x.dtype).removeprefix("torch.")
        return f"x of dtype bfloat16 or float16 for its CUDA kernel, got {got}"
    for weight in weights:
        if not _serves_channels(weight.shape[0], weight.shape[1], upscale_factor):
            return (
                f"channels in multiples of {MULTIPLE} up to {LARGEST}, or up to {FEW} on one side, "
                f"for its CUDA kernel, got weight of shape {list(weight.shape)}"
            )
    capability = torch.cuda.get_device_capability(x.device)
    if capability < CAPABILITY:
        return f"a GPU of compute capability 8.0, got {'.'.join(map(str, capability))}"
    return native.why_not_on(x.device.index)


def _serves_channels(outputs: int, inputs: int, upscale_factor: int) -> bool:
    sides = (outputs / upscale_factor**2, inputs)
    wide = [channels % MULTIPLE == 0 and channels <= LARGEST for channels in sides]
    few = [upscale_factor == 1 and channels <= FEW for channels in sides]
    return all(wide) or (any(wide) and any(few))
