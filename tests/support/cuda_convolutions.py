"""Calls of the emulated convolutions, held to the tolerance rule."""

from collections.abc import Callable

import torch
from torch import Tensor

from support.emulated import Emulation, check
from support.util import channels_last, contiguous, rand, sliced

DTYPES = (torch.bfloat16, torch.float16)
#: Which gradients of images, weights and biases are asked for.
ALL, INPUT, PARAMETERS = (True, True, True), (True, False, False), (False, True, True)


def operands(
    batch: int,
    channels: int,
    out_channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    layout: Callable = channels_last,
) -> list[Tensor]:
    """x, weight, bias and an image of the output's shape."""
    tensors = [
        rand(batch, channels, height, width),
        rand(out_channels, channels, 3, 3) / (3 * channels**0.5),
        rand(out_channels),
        rand(batch, out_channels, height, width, seed=1),
    ]
    return [layout(t.to(dtype)) for t in tensors]


def check_conv3x3(
    emulation: Emulation, x: Tensor, weight: Tensor, bias: Tensor, image: Tensor
) -> None:
    """The output, and the gradient of x."""
    check(emulation, "conv3x3", x, weight, bias, None, 1.0, False)
    check(emulation, "conv3x3_backward", image, x, weight, 1.0, *INPUT)


#: Slopes of a leaky ReLU: a number, or which tensor beside images of 16 bits.
SLOPES = [0.2, -0.3, "float32", "float32, sliced", "16 bits"]


def check_leaky(
    emulation: Emulation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    image: Tensor | None,
    slope: float | str,
) -> None:
    """The output with a residual, if there is one, and a leaky activation."""
    number, slopes = 0.0, None
    if isinstance(slope, str):
        dtype = x.dtype if slope == "16 bits" else torch.float32
        weight, bias = weight.to(dtype), bias.to(dtype)
        slopes = (sliced if "sliced" in slope else contiguous)(rand(len(weight), seed=3).to(dtype))
    else:
        number = slope
    check(emulation, "conv3x3", x, weight, bias, image, 0.5, True, number, slopes)


def check_parameters(
    emulation: Emulation,
    x: Tensor,
    weight: Tensor,
    image: Tensor,
    scale: float = 1.0,
    needs: tuple[bool, bool, bool] = PARAMETERS,
) -> list[Tensor]:
    """The gradients of weight and bias."""
    return check(emulation, "conv3x3_backward", image, x, weight, scale, *needs)


def block_operands(
    batch: int,
    channels: int,
    hidden_channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    layout: Callable = channels_last,
) -> list[Tensor]:
    """grad_output, x, weight1, bias1, weight2, bias2 of a residual block."""
    tensors = [
        rand(batch, channels, height, width, seed=1),
        rand(batch, channels, height, width),
        rand(hidden_channels, channels, 3, 3) / (3 * channels**0.5),
        rand(hidden_channels),
        rand(channels, hidden_channels, 3, 3, seed=1) / (3 * hidden_channels**0.5),
        rand(channels, seed=1),
    ]
    return [layout(t.to(dtype)) for t in tensors]


def check_residual_block(
    emulation: Emulation,
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    res_scale: float,
    needs: tuple[bool, bool] = (True, True),
) -> None:
    arguments = (x, weight1, bias1, weight2, bias2, res_scale)
    _, hidden = check(emulation, "residual_block", *arguments, True)
    check(emulation, "residual_block", *arguments, False)
    arguments = (grad, x, hidden, weight1, weight2, res_scale, *needs)
    check(emulation, "residual_block_backward", *arguments)


def check_pixel_shuffle_upsample(
    emulation: Emulation,
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    factor: int,
    dtype: torch.dtype,
    layout: Callable = channels_last,
    needs: tuple[bool, bool, bool] = ALL,
) -> None:
    square, (height, width) = factor**2, size
    tensors = [
        rand(batch, channels, height, width),
        rand(out_channels * square, channels, 3, 3) / (3 * channels**0.5),
        rand(out_channels * square),
        rand(batch, out_channels, height * factor, width * factor, seed=1),
    ]
    x, weight, bias, grad = (layout(t.to(dtype)) for t in tensors)
    op = "pixel_shuffle_upsample"
    check(emulation, op, x, weight, bias, factor)
    check(emulation, op, x, weight, None, factor)
    check(emulation, f"{op}_backward", grad, x, weight, factor, *needs)
