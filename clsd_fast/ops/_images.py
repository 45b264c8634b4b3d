"""Outputs of the operators on images, as kernels allocate them and fakes promise them."""

import torch
from torch import Tensor

from .._layout import memory_format


def empty_images(x: Tensor, channels: int, upscale_factor: int = 1) -> Tensor:
    """An output for x: [N, channels, r H, r W] in the memory format of every output."""
    height, width = (upscale_factor * size for size in x.shape[2:])
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def empty_hidden(x: Tensor, weight1: Tensor) -> Tensor:
    """A residual block's hidden map [N, M, H, W]. It is channels_last whatever x is: no kernel has
    to transpose it."""
    shape = (x.shape[0], weight1.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def fake_conv_grads(x, weight, needs_x, needs_weight, needs_bias):
    """Outputs of a convolution's backward; empty where a gradient is not needed.

    Those of images and of weights have their memory format.
    """
    return (
        empty_images(x, x.shape[1]) if needs_x else x.new_empty(0),
        empty_images(weight, weight.shape[1]) if needs_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0]) if needs_bias else weight.new_empty(0),
    )
