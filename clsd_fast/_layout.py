"""The memory format of results."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x is unambiguously that, else contiguous: the format of every output."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_format_of(like: Tensor, images: Tensor) -> Tensor:
    """The images in the memory format of others; themselves if they have it."""
    return images.contiguous(memory_format=memory_format(like))
