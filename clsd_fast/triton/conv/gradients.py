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
    check_rows,
    of_branch,
    parts_of_a_kind,
    pixel_offsets,
    place_offsets,
    product,
    round_up,
    tile_of,
)
from .packing import original_channel

#: Programs that fill a GPU twice, an A100 exactly. The pixels are cut into groups for that, by
#: their number and the channels alone.
PROGRAMS = 216
#: The same for biases, whose programs have less to keep.
BIAS_PROGRAMS = 1024
#: Elements, and groups at a time, of a program that adds partials; and of one that adds biases'.
BLOCK_E, BLOCK_G = 128, 8
BIAS_BLOCK_E, BIAS_BLOCK_G = 16, 64


class WeightGradient(NamedTuple):
    """What the gradients of weight and bias are computed from, dense images, and to, or None."""

    grad_output: Tensor
    input: Tensor
    grad_weight: Tensor | None
    grad_bias: Tensor | None


@triton.jit
def next_tile(b, top, left, height, width, block_y: tl.constexpr, block_x: tl.constexpr):
    """The tile after one. Counted, since divisions take long."""
    left += block_x
    is_end = left >= width
    left = tl.where(is_end, 0, left)
    top = tl.where(is_end, top + block_y, top)
    is_end = top >= height
    return b + is_end.to(tl.int32), tl.where(is_end, 0, top), left


@triton.jit
def from_first(
    first,
    line,
    m,
    width,
    channels,
    upscale: tl.constexpr,
    whole: tl.constexpr,
    block_x: tl.constexpr,
):
    """Where channels first + line of a tile's pixels lie, from its first pixel: 32 bits are enough.

    ``whole`` if they all are of one phase.
    """
    pixels = place_offsets(m // block_x, m % block_x, width, channels, upscale).to(tl.int32)
    if whole:
        pixels += channel_offsets(first, width, channels, upscale)
        return pixels[:, None] + line[None, :]
    return pixels[:, None] + channel_offsets(first + line, width, channels, upscale)[None, :]


@triton.jit
def add_tap(total, grad, pixels, exist, has_c, tf32: tl.constexpr):
    """total and the products of pixels with the gradient, [c, k]."""
    image = tl.load(pixels, mask=exist[:, None] & has_c[None, :], other=0)
    return product(tl.trans(image), grad, total, tf32)


@triton.jit
def conv3x3_weight_grad_kernel(
    grads,  # of each branch
    inputs,
    partials,  # [branch, group, 9, width_c, width_k]
    tiles,
    rows,
    columns,
    height,
    width,
    channels_c,
    channels_k,
    width_c,
    width_k,
    groups,
    group_tiles,
    upscale: tl.constexpr,
    whole_k: tl.constexpr,
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
    line_k, line_c = tl.arange(0, block_k), tl.arange(0, block_c)
    first_k = program % k_blocks * block_k
    first_c = program // k_blocks % c_blocks * block_c
    k, c = first_k + line_k, first_c + line_c
    place = program // (k_blocks * c_blocks)
    branch, group = place // groups, place % groups
    grad_image, image = of_branch(grads, branch), of_branch(inputs, branch)
    down, m = tap_row - 1, tl.arange(0, block_y * block_x)
    has_c, has_k = c < channels_c, k < channels_k
    to_c = from_first(first_c, line_c, m, width, channels_c, 1, True, block_x)
    to_k = from_first(first_k, line_k, m, width, channels_k, upscale, whole_k, block_x)
    total0 = tl.zeros([block_c, block_k], acc_type)
    total1, total2 = total0, total0
    first = group * group_tiles
    b, top, left = tile_of(first, rows, columns, block_y, block_x)
    for _ in range(first, tl.minimum(first + group_tiles, tiles)):
        y, x = top + m // block_x, left + m % block_x
        # Nothing is read beside gradients that do not exist: 0 times infinity is NaN.
        exist = (y < height) & (x < width)
        start = pixel_offsets(b, top, left, height, width, channels_k, upscale)
        mask = exist[:, None] & has_k[None, :]
        grad = tl.load((grad_image + start) + to_k, mask=mask, other=0)
        exist = exist & (y >= -down) & (y < height - down)
        start = pixel_offsets(b, top + down, left, height, width, channels_c, 1)
        pixels = image + start
        total0 = add_tap(total0, grad, (pixels - channels_c) + to_c, exist & (x > 0), has_c, tf32)
        total1 = add_tap(total1, grad, pixels + to_c, exist, has_c, tf32)
        exist = exist & (x < width - 1)
        total2 = add_tap(total2, grad, (pixels + channels_c) + to_c, exist, has_c, tf32)
        b, top, left = next_tile(b, top, left, height, width, block_y, block_x)
    line = tap_row * 3 * width_c + c
    taps = partials + place.to(tl.int64) * (9 * width_c * width_k)
    taps += line[:, None] * width_k + k[None, :]
    tl.store(taps, total0)
    tl.store(taps + width_c * width_k, total1)
    tl.store(taps + 2 * width_c * width_k, total2)


@triton.jit
def conv3x3_bias_grad_kernel(
    grads,
    partials,  # [branch, group, width_k]
    tiles,
    rows,
    columns,
    height,
    width,
    channels,
    width_k,
    groups,
    group_tiles,
    upscale: tl.constexpr,
    whole_k: tl.constexpr,
    acc_type: tl.constexpr,
    block_y: tl.constexpr,
    block_x: tl.constexpr,
    block_k: tl.constexpr,
):
    k_blocks = width_k // block_k
    first_k, line_k = tl.program_id(0) % k_blocks * block_k, tl.arange(0, block_k)
    k = first_k + line_k
    place = tl.program_id(0) // k_blocks
    image, group = of_branch(grads, place // groups), place % groups
    m = tl.arange(0, block_y * block_x)
    to_k = from_first(first_k, line_k, m, width, channels, upscale, whole_k, block_x)
    total = tl.zeros([block_y * block_x, block_k], acc_type)
    first = group * group_tiles
    b, top, left = tile_of(first, rows, columns, block_y, block_x)
    for _ in range(first, tl.minimum(first + group_tiles, tiles)):
        exist = (top + m // block_x < height) & (left + m % block_x < width)
        start = pixel_offsets(b, top, left, height, width, channels, upscale)
        mask = exist[:, None] & (k < channels)[None, :]
        total += tl.load((image + start) + to_k, mask=mask, other=0).to(acc_type)
        b, top, left = next_tile(b, top, left, height, width, block_y, block_x)
    tl.store(partials + place * width_k + k, tl.sum(total, 0))


@triton.jit
def conv3x3_sum_kernel(
    partials,  # (pointer to [branch, group, lines, width_k],), of 9 width_c lines or of one
    targets,  # of each branch: gradients [K, C, 3, 3], or [K]
    strides,  # of weights; None of biases
    scale: tl.float64,
    channels_c,
    channels_k,
    width_c,
    width_k,
    lines,
    groups,
    upscale: tl.constexpr,
    acc_type: tl.constexpr,
    block_e: tl.constexpr,
    block_g: tl.constexpr,
):
    blocks = tl.cdiv(lines * width_k, block_e)
    branch = tl.program_id(0) // blocks
    e = tl.program_id(0) % blocks * block_e + tl.arange(0, block_e)
    total = tl.zeros([block_g, block_e], acc_type)
    for start in range(0, groups, block_g):
        group = start + tl.arange(0, block_g)
        at = (branch * groups + group).to(tl.int64)[:, None] * (lines * width_k) + e[None, :]
        exist = (group < groups)[:, None] & (e < lines * width_k)[None, :]
        total += tl.load(partials[0] + at, mask=exist, other=0)
    line, k = e // width_k, original_channel(e % width_k, channels_k, upscale)
    target, exist = k.to(tl.int64), (line < lines) & (k < channels_k)
    if strides is not None:
        tap, c = line // width_c, line % width_c
        target = target * strides[0] + c.to(tl.int64) * strides[1]
        target += tap // 3 * strides[2] + tap % 3 * strides[3]
        exist = exist & (c < channels_c)
    value = tl.sum(total, 0) * tl.full([], scale, acc_type)
    tl.store(of_branch(targets, branch) + target, value, mask=exist)


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


class _Sizes(NamedTuple):
    """Of a launch: tiles in all, and of an image; the image; channels, and as they are padded."""

    tiles: int
    rows: int
    columns: int
    height: int
    width: int
    channels_c: int
    channels_k: int
    width_c: int
    width_k: int


def _weight_gradients(gradients: Sequence[WeightGradient], scale: float, upscale: int) -> None:
    first = gradients[0]
    batch, channels, height, width = first.input.shape
    outputs = first.grad_output.shape[1] * upscale**2
    check_rows(width, max(channels, outputs))
    options = weight_gradient_options(first.input, channels, outputs)
    options |= {"upscale": upscale, "acc_type": acc_type(first.input)}
    options["whole_k"] = first.grad_output.shape[1] % options["block_k"] == 0
    rows, columns = triton.cdiv(height, options["block_y"]), triton.cdiv(width, options["block_x"])
    widths = round_up(channels, options["block_c"]), round_up(outputs, options["block_k"])
    sizes = _Sizes(batch * rows * columns, rows, columns, height, width, channels, outputs, *widths)
    grads, inputs = tuple(g.grad_output for g in gradients), tuple(g.input for g in gradients)
    grad_weights = of_all([gradient.grad_weight for gradient in gradients])
    grad_biases = of_all([gradient.grad_bias for gradient in gradients])
    if grad_weights is not None:
        partials = _weight_partials(grads, inputs, sizes, options)
        _add_up(partials, grad_weights, grad_weights[0].stride(), sizes, scale, options)
    if grad_biases is not None:
        partials = _bias_partials(grads, sizes, options)
        _add_up(partials, grad_biases, None, sizes, scale, options)


def _weight_partials(grads: tuple, inputs: tuple, sizes: _Sizes, options: dict) -> Tensor:
    blocks = sizes.width_c // options["block_c"] * (sizes.width_k // options["block_k"])
    groups, each = _groups(sizes.tiles, PROGRAMS // (3 * blocks * len(grads)))
    partials = empty_statistic(inputs[0], len(grads), groups, 9 * sizes.width_c, sizes.width_k)
    programs = 3 * len(grads) * groups * blocks
    arguments = (grads, inputs, partials, *sizes, groups, each)
    launch(conv3x3_weight_grad_kernel, programs, *arguments, **options)
    return partials


def _bias_partials(grads: tuple, sizes: _Sizes, options: dict) -> Tensor:
    blocks = sizes.width_k // options["block_k"]
    groups, each = _groups(sizes.tiles, BIAS_PROGRAMS // (blocks * len(grads)))
    partials = empty_statistic(grads[0], len(grads), groups, 1, sizes.width_k)
    channels = sizes.channels_k, sizes.width_k
    launch(
        conv3x3_bias_grad_kernel,
        len(grads) * groups * blocks,
        *(grads, partials, *sizes[:5], *channels, groups, each),
        **{name: options[name] for name in options if name not in ("block_c", "tf32")},
    )
    return partials


def _add_up(
    partials: Tensor,
    targets: tuple,
    strides: tuple[int, ...] | None,
    sizes: _Sizes,
    scale: float,
    options: dict,
) -> None:
    branches, groups, lines, width_k = partials.shape
    block_e, block_g = (BLOCK_E, BLOCK_G) if lines > 1 else (BIAS_BLOCK_E, BIAS_BLOCK_G)
    launch(
        conv3x3_sum_kernel,
        branches * triton.cdiv(lines * width_k, block_e),
        *((partials,), targets, strides, float(scale)),
        *(*sizes[5:], lines, groups),
        upscale=options["upscale"],
        acc_type=options["acc_type"],
        block_e=block_e,
        block_g=block_g,
    )


def _groups(tiles: int, most: int) -> tuple[int, int]:
    """Into how many groups the tiles are cut, and the tiles of each."""
    each = max(1, triton.cdiv(tiles, max(1, most)))
    return max(1, triton.cdiv(tiles, each)), each
