"""Outputs of the operators on images, as kernels allocate them and fakes promise them."""

import torch
from torch import Tensor

from .._layout import memory_format


def empty_images(x: Tensor, channels: int, upscale_factor: int = 1) -> Tensor:
    """An output for x: [N, channels, r H, r W] in the memory format of every output."""
    height, width = (upscale_factor * size for size in x.shape[2:])
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def fake_conv_grads(x, weight, needs_x, needs_weight, needs_bias):
    """Outputs of a convolution's backward; empty where a gradient is not needed.

    Those of images and of weights have their memory format.
    """
    return (
        empty_images(x, x.shape[1]) if needs_x else x.new_empty(0),
        empty_images(weight, weight.shape[1]) if needs_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0]) if needs_bias else weight.new_empty(0),
    )
