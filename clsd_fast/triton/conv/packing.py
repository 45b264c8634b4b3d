"""Parameters of convolutions as the kernels multiply with them.

A weight [K, C, 3, 3] is [9, C, K] of the images' dtype, and what is added and multiplied channel by
channel (bias, slopes) [K] of the accumulator's; C and K are in the order of images' memory, and
padded with zeros to blocks. The gradient of a convolution's input is a convolution, too: with the
channels exchanged, and the taps turned around. One launch packs all convolutions of one shape.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._launch import accumulator_dtype, launch
from .configurations import convolution_options
from .images import of_branch, parts_of_a_kind, round_up

#: Elements of a program.
BLOCK = 1024
#: Weights of a launch.
MOST_WEIGHTS = 16


class Packed(NamedTuple):
    """The parameters of one convolution: weight [9, C, K], bias and slopes [K] or None."""

    weight: Tensor
    bias: Tensor | None
    slopes: Tensor | None = None


class Parameters(NamedTuple):
    """What is packed of a convolution: bias and slopes [K] or None."""

    weight: Tensor
    bias: Tensor | None = None
    slopes: Tensor | None = None


@triton.jit
def original_channel(c, channels, upscale: tl.constexpr):
    """The number that PyTorch gives a channel; at least ``channels`` where there is none."""
    if upscale == 1:
        return c
    each = channels // (upscale * upscale)
    return tl.where(c < channels, c % each * upscale * upscale + c // each, channels)


@triton.jit
def pack_vector(vectors, stride, packed, convolution, k, outputs, to_k, width_k, is_first):
    if vectors is not None:
        source = of_branch(vectors, convolution) + k.to(tl.int64) * stride
        value = tl.load(source, mask=is_first & (k < outputs), other=0)
        tl.store(packed + convolution * width_k + to_k, value, mask=is_first)


@triton.jit
def conv3x3_pack_kernel(
    weights,  # of each convolution
    biases,  # or None, as slopes
    slopes,
    packed_weights,  # [convolution, 9, width_c, width_k]
    packed_biases,  # [convolution, width_k]
    packed_slopes,
    weight_strides,
    bias_stride,
    slope_stride,
    channels,
    outputs,
    width_c,
    width_k,
    upscale_c: tl.constexpr,
    upscale_k: tl.constexpr,
    turned: tl.constexpr,
    block_e: tl.constexpr,
):
    lines = 9 * width_c
    blocks = tl.cdiv(lines * width_k, block_e)
    convolution = tl.program_id(0) // blocks
    e = tl.program_id(0) % blocks * block_e + tl.arange(0, block_e)
    to_k, line = e % width_k, e // width_k
    to_c, tap = line % width_c, line // width_c
    if turned:
        tap = 8 - tap
    k = original_channel(to_k, outputs, upscale_k)
    c = original_channel(to_c, channels, upscale_c)
    stride_k, stride_c, stride_y, stride_x = weight_strides
    source = k.to(tl.int64) * stride_k + c.to(tl.int64) * stride_c
    source += tap // 3 * stride_y + tap % 3 * stride_x
    exists = (line < lines) & (k < outputs) & (c < channels)
    value = tl.load(of_branch(weights, convolution) + source, mask=exists, other=0)
    target = packed_weights + convolution.to(tl.int64) * lines * width_k + e
    tl.store(target, value, mask=line < lines)
    # Those are as many as the first line.
    where = (convolution, k, outputs, to_k, width_k, line == 0)
    pack_vector(biases, bias_stride, packed_biases, *where)
    pack_vector(slopes, slope_stride, packed_slopes, *where)


def pack(
    parameters: Sequence[Parameters],
    like: Tensor,
    *,
    upscale: int = 1,
    transposed: bool = False,
) -> list[Packed]:
    """Each convolution's parameters, for images of a dtype.

    Args:
        parameters: of each; those of one kind are packed by one launch.
        like: of the images' dtype and device.
        upscale: of the pixel shuffle after the convolution.
        transposed: for the gradient of the convolution's input.
    """

    def kind(tensors: Parameters) -> tuple:
        return tuple(None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors)

    found: dict[int, Packed] = {}
    for indices in parts_of_a_kind(map(kind, parameters), MOST_WEIGHTS):
        packed = _pack([parameters[i] for i in indices], like, upscale, transposed)
        found |= zip(indices, packed, strict=True)
    return [found[i] for i in range(len(parameters))]


def _pack(
    parameters: Sequence[Parameters], like: Tensor, upscale: int, transposed: bool
) -> list[Packed]:
    """Of parameters that are alike."""
    count, first = len(parameters), parameters[0]
    outputs, channels = first.weight.shape[:2]
    strides, upscales = first.weight.stride(), (1, upscale)
    if transposed:
        outputs, channels, upscales = channels, outputs, upscales[::-1]
        strides = (strides[1], strides[0], *strides[2:])
    blocks = convolution_options(like, channels, outputs)
    width_c, width_k = round_up(channels, blocks["block_c"]), round_up(outputs, blocks["block_k"])
    weights = like.new_empty(count, 9, width_c, width_k)
    vectors = [
        None if t is None else like.new_empty(count, width_k, dtype=accumulator_dtype(like))
        for t in first[1:]
    ]
    launch(
        conv3x3_pack_kernel,
        count * triton.cdiv(9 * width_c * width_k, BLOCK),
        *(None if t[0] is None else tuple(t) for t in zip(*parameters, strict=True)),
        weights,
        *vectors,
        strides,
        *(None if t is None else t.stride(0) for t in first[1:]),
        channels,
        outputs,
        width_c,
        width_k,
        upscale_c=upscales[0],
        upscale_k=upscales[1],
        turned=transposed,
        block_e=BLOCK,
    )
    none = [None] * count
    return list(map(Packed, weights, *(none if t is None else t for t in vectors)))
