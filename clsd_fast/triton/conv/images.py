"""Images of convolutions as kernels read and write them.

All are dense [N, H, W, C]. A pixel-shuffled image [N, r H, r W, C / r^2] is seen as its original of
C channels, in the order of memory: with ``phase = i * r + j``, channel ``phase * C / r^2 + c`` lies
at pixel (r y + i, r x + j), channel c.

In kernels, b, y and x are image, row and column of pixels, c and k channels of inputs and outputs,
``upscale`` is the r of an image that is shuffled, else 1. A list of branches is a tuple with each
one's tensor.
"""

from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._rows import dot as exact_dot

#: Branches of a launch.
MOST_BRANCHES = 8
#: Numbers of a row of pixels: those of a tile's rows are counted in 32 bits.
MOST_NUMBERS = 2**27


def dense(images: Tensor) -> Tensor:
    """The images with their channels dense, copied if they lie otherwise."""
    return images.contiguous(memory_format=torch.channels_last)


def round_up(size: int, multiple: int) -> int:
    return triton.cdiv(size, multiple) * multiple


def check_rows(width: int, channels: int) -> None:
    """Raise for images that the kernels cannot count through."""
    if width * channels > MOST_NUMBERS:
        raise RuntimeError(
            f"conv3x3: expected at most {MOST_NUMBERS} numbers in a row of pixels for its Triton "
            f"kernel, got {width * channels}"
        )


def writable(output: Tensor) -> Tensor:
    """What kernels write an output to: itself, if its channels are dense."""
    layout = torch.channels_last
    if output.is_contiguous(memory_format=layout):
        return output
    return torch.empty_like(output, memory_format=layout)


def finish(outputs: Sequence[Tensor], written: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, once kernels have written them."""
    for output, tensor in zip(outputs, written, strict=True):
        if tensor is not output:
            output.copy_(tensor)
    return list(outputs)


def parts_of_a_kind(kinds: Iterable[tuple], most: int) -> list[list[int]]:
    """Indices of equal kinds, at most so many together."""
    groups: dict[tuple, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    return [
        indices[first : first + most]
        for indices in groups.values()
        for first in range(0, len(indices), most)
    ]


@triton.jit
def of_branch(tensors, branch):
    """One of a tuple of pointers."""
    found = tensors[0]
    for i in tl.static_range(1, len(tensors)):
        found = tl.where(branch == i, tensors[i], found)
    return found


@triton.jit
def tile_of(tile, rows, columns, block_y: tl.constexpr, block_x: tl.constexpr):
    """Image, first row and first column of a tile; images have so many rows and columns of them."""
    line = tile // columns
    return line // rows, line % rows * block_y, tile % columns * block_x


@triton.jit
def place_offsets(row, x, width, channels, upscale: tl.constexpr):
    """Where pixels of rows begin, counted through all images; or the way to others."""
    return (row * upscale * width + x).to(tl.int64) * (channels // upscale)


@triton.jit
def pixel_offsets(b, y, x, height, width, channels, upscale: tl.constexpr):
    return place_offsets(b.to(tl.int64) * height + y, x, width, channels, upscale)


@triton.jit
def channel_offsets(c, width, channels, upscale: tl.constexpr):
    """Where channels of a pixel lie, from its beginning."""
    if upscale == 1:
        return c
    each = channels // (upscale * upscale)
    phase = c // each
    return (phase // upscale * upscale * width + phase % upscale) * each + c % each


@triton.jit
def product(a, b, total, tf32: tl.constexpr):
    """total + a @ b; of float32 exactly, unless its products may be TF32."""
    if tf32:
        return tl.dot(a, b, total, input_precision="tf32", out_dtype=total.dtype)
    return exact_dot(a, b, total)
