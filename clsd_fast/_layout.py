"""The memory format of results."""

import torch
from torch import Tensor

from ._torch import may_be_batched


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x is unambiguously that, else contiguous: the format of every output.

    Below vmap it is contiguous: PyTorch has no other for batched tensors.
    """
    if x.is_contiguous() or may_be_batched(x):
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_format(layout: torch.memory_format, images: Tensor) -> Tensor:
    """The images in a memory format, or contiguous below vmap; themselves if they have it."""
    if may_be_batched(images):
        return images.contiguous()
    return images.contiguous(memory_format=layout)


def in_format_of(like: Tensor, images: Tensor) -> Tensor:
    """The images in the memory format of others; themselves if they have it."""
    return in_format(memory_format(like), images)
