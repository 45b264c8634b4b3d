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
#: Operators of composed tails, whose inner convolutions may have any channels.
TAILS = ("upsample_tail", "upsample_tails")
#: The first GPUs with bfloat16 and asynchronous copies.
CAPABILITY = (8, 0)


def why_not(op: str, x: Tensor, weights: tuple[Tensor, ...], upscale_factor: int) -> str | None:
    """What a call would need to be served, and what it has; None if it is served.

    Args:
        op: name of an operator.
        x: on a CUDA device.
        weights: of the call's convolutions, or its tails' last ones. Without any, the answer is for
            the operator at large.
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
    reason = _why_not_channels(op, x, weights, upscale_factor)
    if reason is not None:
        return reason
    return why_not_capable(x) or native.why_not_on(x.device.index)


def why_not_capable(x: Tensor) -> str | None:
    """The same of the GPU that x is on."""
    capability = torch.cuda.get_device_capability(x.device)
    if capability < CAPABILITY:
        return f"a GPU of compute capability 8.0, got {'.'.join(map(str, capability))}"
    return None


def _why_not_channels(
    op: str, x: Tensor, weights: tuple[Tensor, ...], upscale_factor: int
) -> str | None:
    wide = f"channels in multiples of {MULTIPLE} up to {LARGEST}"
    for weight in weights:
        outputs, inputs = weight.shape[:2]
        if op in TAILS:
            if not _is_wide(x.shape[1]) or outputs > FEW:
                return (
                    f"{wide} and up to {FEW} outputs for its CUDA kernel, got x of shape "
                    f"{list(x.shape)} and out_weight of shape {list(weight.shape)}"
                )
        elif not _serves_convolution(outputs, inputs, upscale_factor):
            return (
                f"{wide}, or up to {FEW} on one side, for its CUDA kernel, "
                f"got weight of shape {list(weight.shape)}"
            )
    return None


def _is_wide(channels: float) -> bool:
    return channels % MULTIPLE == 0 and channels <= LARGEST


def _serves_convolution(outputs: int, inputs: int, upscale_factor: int) -> bool:
    sides = (outputs / upscale_factor**2, inputs)
    wide = list(map(_is_wide, sides))
    few = [upscale_factor == 1 and channels <= FEW for channels in sides]
    return all(wide) or (any(wide) and any(few))
