"""Gradients of convolutions' weights and biases.

A program sums the products of one row of taps over a group of tiles; a second launch adds the
groups' partials in their order, so that nothing depends on which program ends first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._launch import acc_type, empty_statistic, launch
from .configurations import weight_gradient_options
from .convolve import of_all
from .images import (
    MOST_BRANCHES,
    channel_offsets,
    of_branch,
    parts_of_a_kind,
    pixel_offsets,
    product,
    round_up,
    tile_program,
)
from .packing import original_channel

#: Programs that fill a large GPU twice. The pixels are cut into groups for that, by their number
#: and the channels alone.
PROGRAMS = 264
#: Elements, and groups at a time, of a program that adds partials.
BLOCK_E, BLOCK_G = 128, 8


class WeightGradient(NamedTuple):
    """What the gradients of weight and bias are computed from, dense images, and to, or None."""

    grad_output: Tensor
    input: Tensor
    grad_weight: Tensor | None
    grad_bias: Tensor | None


@triton.jit
def load_grad(image, b, top, left, m, k, height, width, channels, upscale, block_x: tl.constexpr):
    """The gradient of a tile of outputs, [pixel, k]; rows and columns of its pixels."""
    y, x = top + m // block_x, left + m % block_x
    offsets = pixel_offsets(b, y, x, height, width, channels, upscale)
    to_k = channel_offsets(k, width, channels, upscale)
    exist = ((y < height) & (x < width))[:, None] & (k < channels)[None, :]
    return tl.load(image + (offsets[:, None] + to_k[None, :]), mask=exist, other=0), y, x


@triton.jit
def add_tap(total, grad, pixels, exist, c, channels, tf32: tl.constexpr):
    """total and the products of pixels with the gradient, [c, k]."""
    image = tl.load(pixels, mask=exist[:, None] & (c < channels)[None, :], other=0)
    return product(tl.trans(image), grad, total, tf32)


@triton.jit
def conv3x3_weight_grad_kernel(
    grads,  # of each branch
    inputs,
    partials,  # [branch, group, 9 width_c + 1, width_k], the last line of which is the bias's
    batch,
    height,
    width,
    channels_c,
    channels_k,
    width_c,
    width_k,
    groups,
    group_tiles,
    upscale: tl.constexpr,
    acc_type: tl.constexpr,
    tf32: tl.constexpr,
    block_y: tl.constexpr,
    block_x: tl.constexpr,
    block_c: tl.constexpr,
    block_k: tl.constexpr,
):
    # The rows of taps vary fastest: their programs read the same pixels.
    tap_row, program = tl.program_id(0) % 3, tl.program_id(0) // 3
    k_blocks, c_blocks = width_k // block_k, width_c // block_c
    k = program % k_blocks * block_k + tl.arange(0, block_k)
    c = program // k_blocks % c_blocks * block_c + tl.arange(0, block_c)
    place = program // (k_blocks * c_blocks)
    branch, group = place // groups, place % groups
    grad_image, image = of_branch(grads, branch), of_branch(inputs, branch)
    m = tl.arange(0, block_y * block_x)
    down = tap_row - 1
    total0 = tl.zeros([block_c, block_k], acc_type)
    total1, total2 = total0, total0
    tiles = batch * tl.cdiv(height, block_y) * tl.cdiv(width, block_x)
    first = group * group_tiles
    for tile in range(first, tl.minimum(first + group_tiles, tiles)):
        b, top, left = tile_program(tile, height, width, block_y, block_x)
        grad, y, x = load_grad(
            grad_image, b, top, left, m, k, height, width, channels_k, upscale, block_x
        )
        # Nothing is read beside gradients that do not exist: 0 times infinity is NaN.
        exist = (y < height) & (x < width) & (y >= -down) & (y < height - down)
        shifted = pixel_offsets(b, y + down, x, height, width, channels_c, 1)
        pixels = image + (shifted[:, None] + c[None, :])
        before, after = exist & (x > 0), exist & (x < width - 1)
        total0 = add_tap(total0, grad, pixels - channels_c, before, c, channels_c, tf32)
        total1 = add_tap(total1, grad, pixels, exist, c, channels_c, tf32)
        total2 = add_tap(total2, grad, pixels + channels_c, after, c, channels_c, tf32)
    line = tap_row * 3 * width_c + c
    lines = partials + place.to(tl.int64) * (9 * width_c + 1) * width_k
    taps = lines + line[:, None] * width_k + k[None, :]
    tl.store(taps, total0)
    tl.store(taps + width_c * width_k, total1)
    tl.store(taps + 2 * width_c * width_k, total2)


@triton.jit
def conv3x3_bias_grad_kernel(
    grads,
    partials,  # conv3x3_weight_grad_kernel's
    batch,
    height,
    width,
    channels,
    width_k,
    lines,
    groups,
    group_tiles,
    upscale: tl.constexpr,
    acc_type: tl.constexpr,
    block_y: tl.constexpr,
    block_x: tl.constexpr,
    block_k: tl.constexpr,
):
    k_blocks = width_k // block_k
    k = tl.program_id(0) % k_blocks * block_k + tl.arange(0, block_k)
    place = tl.program_id(0) // k_blocks
    image, group = of_branch(grads, place // groups), place % groups
    m = tl.arange(0, block_y * block_x)
    total = tl.zeros([block_y * block_x, block_k], acc_type)
    tiles = batch * tl.cdiv(height, block_y) * tl.cdiv(width, block_x)
    first = group * group_tiles
    for tile in range(first, tl.minimum(first + group_tiles, tiles)):
        b, top, left = tile_program(tile, height, width, block_y, block_x)
        grad, _, _ = load_grad(image, b, top, left, m, k, height, width, channels, upscale, block_x)
        total += grad.to(acc_type)
    line = place.to(tl.int64) * lines + lines - 1
    tl.store(partials + line * width_k + k, tl.sum(total, 0))


@triton.jit
def conv3x3_sum_kernel(
    partials,  # (pointer to conv3x3_weight_grad_kernel's,)
    grad_weights,  # of each branch, [K, C, 3, 3], or None
    grad_biases,  # [K], or None
    weight_strides,
    scale: tl.float64,
    channels_c,
    channels_k,
    width_c,
    width_k,
    groups,
    upscale: tl.constexpr,
    acc_type: tl.constexpr,
    block_e: tl.constexpr,
    block_g: tl.constexpr,
):
    lines = 9 * width_c + 1
    blocks = tl.cdiv(lines * width_k, block_e)
    branch = tl.program_id(0) // blocks
    e = tl.program_id(0) % blocks * block_e + tl.arange(0, block_e)
    total = tl.zeros([block_g, block_e], acc_type)
    for start in range(0, groups, block_g):
        group = start + tl.arange(0, block_g)
        at = (branch * groups + group).to(tl.int64)[:, None] * (lines * width_k) + e[None, :]
        exist = (group < groups)[:, None] & (e < lines * width_k)[None, :]
        total += tl.load(partials[0] + at, mask=exist, other=0)
    value = tl.sum(total, 0) * tl.full([], scale, acc_type)
    line = e // width_k
    tap, c = line // width_c, line % width_c
    k = original_channel(e % width_k, channels_k, upscale)
    if grad_weights is not None:
        stride_k, stride_c, stride_y, stride_x = weight_strides
        target = k.to(tl.int64) * stride_k + c.to(tl.int64) * stride_c
        target += tap // 3 * stride_y + tap % 3 * stride_x
        exist = (tap < 9) & (c < channels_c) & (k < channels_k)
        tl.store(of_branch(grad_weights, branch) + target, value, mask=exist)
    if grad_biases is not None:
        exist = (line == lines - 1) & (k < channels_k)
        tl.store(of_branch(grad_biases, branch) + k, value, mask=exist)


def weight_gradients(
    gradients: Sequence[WeightGradient], scale: float = 1.0, *, upscale: int = 1
) -> None:
    """Compute them, those of convolutions of one shape by the same launches.

    Args:
        gradients: of each, all asking for the same.
        scale: factor of the convolutions' outputs.
        upscale: of a pixel shuffle that the outputs were written through.
    """

    def kind(gradient: WeightGradient) -> tuple:
        weight = gradient.grad_weight
        shapes = gradient.grad_output.shape, gradient.input.shape
        return *shapes, None if weight is None else weight.stride()

    for indices in parts_of_a_kind(map(kind, gradients), MOST_BRANCHES):
        _weight_gradients([gradients[i] for i in indices], scale, upscale)


def _weight_gradients(gradients: Sequence[WeightGradient], scale: float, upscale: int) -> None:
    first = gradients[0]
    batch, channels, height, width = first.input.shape
    outputs = first.grad_output.shape[1] * upscale**2
    options = weight_gradient_options(first.input, channels, outputs)
    options |= {"upscale": upscale, "acc_type": acc_type(first.input)}
    block_c, block_k = options["block_c"], options["block_k"]
    width_c, width_k = round_up(channels, block_c), round_up(outputs, block_k)
    lines, blocks = 9 * width_c + 1, width_c // block_c * (width_k // block_k)
    tiles = batch * triton.cdiv(height, options["block_y"]) * triton.cdiv(width, options["block_x"])
    groups, group_tiles = _groups(tiles, 3 * blocks * len(gradients))
    branches = len(gradients)
    partials = empty_statistic(first.input, branches, groups, lines, width_k)
    grads, inputs, grad_weights, grad_biases = map(of_all, zip(*gradients, strict=True))
    sizes, cut = (batch, height, width), (groups, group_tiles)
    if grad_weights is not None:
        launch(
            conv3x3_weight_grad_kernel,
            3 * branches * groups * blocks,
            *(grads, inputs, partials, *sizes),
            *(channels, outputs, width_c, width_k, *cut),
            **options,
        )
    if grad_biases is not None:
        unused = ("block_c", "tf32")
        launch(
            conv3x3_bias_grad_kernel,
            branches * groups * (width_k // block_k),
            *(grads, partials, *sizes, outputs, width_k, lines, *cut),
            **{name: options[name] for name in options if name not in unused},
        )
    launch(
        conv3x3_sum_kernel,
        branches * triton.cdiv(lines * width_k, BLOCK_E),
        (partials,),
        grad_weights,
        grad_biases,
        None if grad_weights is None else grad_weights[0].stride(),
        float(scale),
        *(channels, outputs, width_c, width_k, groups),
        upscale=upscale,
        acc_type=options["acc_type"],
        block_e=BLOCK_E,
        block_g=BLOCK_G,
    )


def _groups(tiles: int, programs: int) -> tuple[int, int]:
    """Into how many groups the tiles are cut, and the tiles of each."""
    groups = max(1, min(PROGRAMS // programs, tiles))
    each = max(1, triton.cdiv(tiles, groups))
    return max(1, triton.cdiv(tiles, each)), each
