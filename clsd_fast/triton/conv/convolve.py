"""3x3 convolutions with their epilogue: one product of matrices for each tap and slice of channels.

A program has a tile of pixels and a block of outputs. The gradient of a convolution's input is
computed by the same kernel (``packing``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._launch import acc_type, launch
from .configurations import convolution_options
from .images import (
    MOST_BRANCHES,
    channel_offsets,
    check_rows,
    of_branch,
    pixel_offsets,
    place_offsets,
    product,
    tile_of,
)
from .packing import Packed

MOST_PROGRAMS = 2**31 - 1


class Convolution(NamedTuple):
    """The images of one, all dense, and its parameters.

    ``residual`` and ``added`` are images that are added to the output before the activation;
    ``positive`` is one that it is kept where it is > 0.
    """

    input: Tensor
    output: Tensor
    packed: Packed
    residual: Tensor | None = None
    added: Tensor | None = None
    positive: Tensor | None = None


class Epilogue(NamedTuple):
    """What follows the sums of all convolutions of a launch: a factor, and with ``relu`` the
    factor of negative results, unless each channel has its own (``Packed.slopes``)."""

    scale: float = 1.0
    relu: bool = False
    negative_slope: float = 0.0


NOTHING = Epilogue()


@triton.jit
def load_image(images, branch, offsets, exist, like):
    """What is at offsets of a branch's image, as ``like`` is typed."""
    value = tl.load(of_branch(images, branch) + offsets, mask=exist, other=0)
    return value.to(like.dtype)


@triton.jit
def activated(total, slopes, negative_slope, leaky: tl.constexpr):
    """By slopes of each column, or else by one if it is ``leaky``."""
    # Not the maximum: that of a NaN would be 0. Not a product with 0: that of infinity is NaN.
    if slopes is not None:
        return tl.where(total > 0, total, total * slopes[None, :])
    if leaky:
        return tl.where(total > 0, total, total * negative_slope)
    return tl.where(total <= 0, 0, total)


@triton.jit
def existing_taps(y, x, height, width):
    """Of each pixel, a bit for each of the nine around it that exists, all 0 beyond the image."""
    is_inside = (y < height) & (x < width)
    rows = tl.where(y > 0, 0b111, 0) | 0b111_000 | tl.where(y < height - 1, 0b111_000_000, 0)
    columns = tl.where(x > 0, 0b001_001_001, 0) | tl.where(x < width - 1, 0b100_100_100, 0)
    return tl.where(is_inside, rows & (columns | 0b010_010_010), 0)


@triton.jit
def load_tap(
    corner,
    near,
    exist,
    tap,
    first,
    line,
    width,
    channels,
    upscale: tl.constexpr,
    whole: tl.constexpr,
):
    """Channels from ``first`` on of the pixels at a tap; ``whole`` if they all are of one phase."""
    shift = place_offsets(tap // 3 - 1, tap % 3 - 1, width, channels, upscale)
    if whole or upscale == 1:
        near = (corner + (shift + channel_offsets(first, width, channels, upscale))) + near
    else:
        c = channel_offsets(first + line, width, channels, upscale) - line
        near = (corner + shift) + (near + c[None, :])
    inside = ((exist >> tap) & 1)[:, None] != 0
    if not whole:
        inside = inside & (first + line < channels)[None, :]
    return tl.load(near, mask=inside, other=0)


@triton.jit
def sum_of_taps(
    image,
    taps,
    b,
    top,
    left,
    height,
    width,
    channels,
    slices,
    k,
    width_k,
    upscale: tl.constexpr,
    whole: tl.constexpr,
    ahead: tl.constexpr,
    acc_type: tl.constexpr,
    tf32: tl.constexpr,
    block_y: tl.constexpr,
    block_x: tl.constexpr,
    block_c: tl.constexpr,
):
    """Products of a tile's pixels with the weights of all taps and channels, [pixel, k]."""
    m, line = tl.arange(0, block_y * block_x), tl.arange(0, block_c)
    corner = image + pixel_offsets(b, top, left, height, width, channels, upscale)
    # From the tile's first pixel on, offsets fit 32 bits.
    near = place_offsets(m // block_x, m % block_x, width, channels, upscale)
    near = near.to(tl.int32)[:, None] + line[None, :]
    exist = existing_taps(top + m // block_x, left + m % block_x, height, width)
    of_tap = line[:, None] * width_k + k[None, :]
    total = tl.zeros([block_y * block_x, k.shape[0]], acc_type)
    tap, first = 0, 0
    pixels = load_tap(corner, near, exist, tap, first, line, width, channels, upscale, whole)
    weight = tl.load(taps + of_tap)
    for _ in range(9 * slices):
        # Not divided by the number of slices: that takes as long as many products.
        first += block_c
        is_last = first == slices * block_c
        tap, first = tap + is_last.to(tl.int32), tl.where(is_last, 0, first)
        taps += tl.where(tap < 9, block_c * width_k, 0)
        if not ahead:
            total = product(pixels, weight, total, tf32)
        where = (corner, near, exist, tap, first, line, width, channels)
        next_pixels, next_weight = load_tap(*where, upscale, whole), tl.load(taps + of_tap)
        if ahead:  # they arrive while what was there before is multiplied
            total = product(pixels, weight, total, tf32)
        pixels, weight = next_pixels, next_weight
    return total


@triton.jit
def finished(
    total,
    branch,
    offsets,
    exist,
    k,
    biases,
    slopes,
    residuals,
    addeds,
    positives,
    scale,
    negative_slope,
    relu: tl.constexpr,
    leaky: tl.constexpr,
):
    """What the epilogue makes of sums."""
    if biases is not None:
        total += tl.load(of_branch(biases, branch) + k)[None, :]
    total *= tl.full([], scale, total.dtype)
    if residuals is not None:
        total += load_image(residuals, branch, offsets, exist, total)
    if addeds is not None:
        total += load_image(addeds, branch, offsets, exist, total)
    if relu:
        of_channel = None
        if slopes is not None:
            of_channel = tl.load(of_branch(slopes, branch) + k)
        total = activated(total, of_channel, tl.full([], negative_slope, total.dtype), leaky)
    if positives is not None:
        sign = load_image(positives, branch, offsets, exist, total)
        total = tl.where(sign <= 0, 0, total)
    return total


@triton.jit
def conv3x3_kernel(
    inputs,  # of each branch
    outputs,
    weights,
    biases,  # or None, as all that follow
    slopes,
    residuals,
    addeds,
    positives,
    scale: tl.float64,
    negative_slope: tl.float64,
    tiles,
    rows,
    columns,
    height,
    width,
    channels_c,
    channels_k,
    slices,
    k_blocks,
    upscale_c: tl.constexpr,
    upscale_k: tl.constexpr,
    relu: tl.constexpr,
    leaky: tl.constexpr,
    whole_c: tl.constexpr,
    ahead: tl.constexpr,
    acc_type: tl.constexpr,
    tf32: tl.constexpr,
    block_y: tl.constexpr,
    block_x: tl.constexpr,
    block_c: tl.constexpr,
    block_k: tl.constexpr,
):
    # Divisions take long: by what is 1, there are none.
    program, k = tl.program_id(0), tl.arange(0, block_k)
    program, k = program // k_blocks, program % k_blocks * block_k + k
    branch = 0
    if len(inputs) > 1:
        branch, program = program // tiles, program % tiles
    b, top, left = tile_of(program, rows, columns, block_y, block_x)
    total = sum_of_taps(
        *(of_branch(inputs, branch), of_branch(weights, branch), b, top, left, height, width),
        *(channels_c, slices, k, k_blocks * block_k, upscale_c, whole_c, ahead),
        *(acc_type, tf32, block_y, block_x, block_c),
    )
    m = tl.arange(0, block_y * block_x)
    y, x = top + m // block_x, left + m % block_x
    exist = ((y < height) & (x < width))[:, None] & (k < channels_k)[None, :]
    offsets = pixel_offsets(b, y, x, height, width, channels_k, upscale_k)[:, None]
    offsets += channel_offsets(k, width, channels_k, upscale_k)[None, :]
    added = (biases, slopes, residuals, addeds, positives)
    total = finished(total, branch, offsets, exist, k, *added, scale, negative_slope, relu, leaky)
    tl.store(of_branch(outputs, branch) + offsets, total, mask=exist)


def convolve(
    convolutions: Sequence[Convolution],
    epilogue: Epilogue = NOTHING,
    *,
    input_upscale: int = 1,
    output_upscale: int = 1,
) -> None:
    """Run convolutions that are alike but for their tensors.

    Args:
        convolutions: of images of one shape, all with the same parts.
        epilogue: of all.
        input_upscale: of a pixel shuffle that the input is read through.
        output_upscale: of a pixel shuffle that the output is written through.
    """
    for first in range(0, len(convolutions), MOST_BRANCHES):
        part = convolutions[first : first + MOST_BRANCHES]
        _convolve(part, epilogue, input_upscale, output_upscale)


def _convolve(
    convolutions: Sequence[Convolution],
    epilogue: Epilogue,
    input_upscale: int,
    output_upscale: int,
) -> None:
    first = convolutions[0]
    batch, channels, height, width = first.input.shape
    channels *= input_upscale**2
    height, width = height // input_upscale, width // input_upscale
    outputs = first.output.shape[1] * output_upscale**2
    check_rows(width, max(channels, outputs))
    options = convolution_options(first.input, channels, outputs)
    rows, columns = (
        triton.cdiv(height, options["block_y"]),
        triton.cdiv(width, options["block_x"]),
    )
    tiles, k_blocks = batch * rows * columns, triton.cdiv(outputs, options["block_k"])
    launch(
        conv3x3_kernel,
        len(convolutions) * tiles * k_blocks,
        *(of_all([c.input for c in convolutions]), of_all([c.output for c in convolutions])),
        *map(of_all, zip(*(c.packed for c in convolutions), strict=True)),
        *map(of_all, zip(*(c[3:] for c in convolutions), strict=True)),
        float(epilogue.scale),
        float(epilogue.negative_slope),
        *(tiles, rows, columns, height, width, channels, outputs),
        triton.cdiv(channels, options["block_c"]),
        k_blocks,
        upscale_c=input_upscale,
        upscale_k=output_upscale,
        relu=epilogue.relu,
        leaky=epilogue.negative_slope != 0,
        whole_c=first.input.shape[1] % options["block_c"] == 0,
        ahead=options.pop("num_stages") > 1,
        num_stages=1,
        acc_type=acc_type(first.input),
        **options,
    )


def of_all(tensors: Sequence[Tensor | None]) -> tuple | None:
    """Tensors of branches as an argument of a kernel, which all branches have or none."""
    return None if tensors[0] is None else tuple(tensors)
