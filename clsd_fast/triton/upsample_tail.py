"""The composed tail: composing its weight (``tail.compose``) and applying it (``tail.apply``).

Nothing is summed by atomics: the gradient of the composed weight is summed over groups of pixels
first, then over the groups in their order.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..ops._images import empty_images
from ..reference.tail import stages_of
from ._launch import PROGRAMS, acc_type, accumulator_dtype, block, launch, strided
from .tail.apply import (
    tail_composed_grad_kernel,
    tail_forward_kernel,
    tail_images_grad_kernel,
    tail_unshuffle_kernel,
    tail_weights_grad_kernel,
    tail_weights_kernel,
)
from .tail.compose import BLOCK, compose_all, compose_all_backward
from .tail.taps import INNER, KINDS, WINDOW

#: Pixels are numbered in 32 bits, blocks beyond the last of them included.
MOST_PIXELS = 2**30
_KINDS, _WINDOW = KINDS.value, WINDOW.value


def upsample_tail(
    x: Tensor,
    up_weight1: Tensor,
    up_bias1: Tensor | None,
    up_weight2: Tensor | None,
    up_bias2: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    upscale_factor: int,
) -> tuple[Tensor, Tensor]:
    """[N, C, H, W] to [N, K, r H, r W]; and the composed weight [C + 1, taps, taps, K].

    Parameters are in the accumulator's dtype. Images whose channels are apart, as contiguous ones'
    are, are copied once.
    """
    _check_size(x)
    stages = stages_of(up_weight1, up_bias1, up_weight2, up_bias2)
    composed = compose_all(stages, out_weight, upscale_factor)[0]
    outputs = out_weight.shape[0]
    options = _options(x, outputs, upscale_factor)
    weights, ones = _weights(composed, x, options)
    output = empty_images(x, outputs, upscale_factor)
    launch(
        tail_forward_kernel,
        _blocks(x, options["block_m"], 1) * (weights.shape[3] // options["block_n"]),
        strided(_with_dense_channels(x)),
        weights,
        ones,
        strided(out_bias),
        strided(output),
        *_sizes(x),
        outputs,
        *weights.shape[2:],
        **options,
    )
    return output, composed


def upsample_tail_backward(
    grad_output: Tensor,
    x: Tensor,
    composed: Tensor,
    up_weight1: Tensor,
    up_bias1: Tensor | None,
    up_weight2: Tensor | None,
    up_bias2: Tensor | None,
    out_weight: Tensor,
    upscale_factor: int,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x and of the forward's parameters in their order; empty if not needed."""
    options = _options(x, composed.shape[3], upscale_factor)
    unshuffled = _unshuffled(grad_output, x, options)
    grad_x = _grad_x(unshuffled, x, composed, options) if needs_x else x.new_empty(0)
    none = [composed.new_empty(0) for _ in range(6)]
    if not needs_params:
        return grad_x, *none
    grad_composed = _grad_composed(unshuffled, x, composed, options)
    stages = stages_of(up_weight1, up_bias1, up_weight2, up_bias2)
    *ups, grad_out = compose_all_backward(grad_composed, stages, out_weight, upscale_factor)
    grad_out_bias = grad_output.sum((0, 2, 3), dtype=composed.dtype)
    return grad_x, *(ups + none)[:4], grad_out, grad_out_bias


def _check_size(x: Tensor) -> None:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if pixels > MOST_PIXELS:
        raise RuntimeError(
            f"upsample_tail: expected at most {MOST_PIXELS} pixels for its Triton kernel, "
            f"got {pixels}"
        )


def _options(x: Tensor, outputs: int, factor: int) -> dict[str, Any]:
    """Options of kernels that multiply pixels with weights."""
    pixels, depth, most = {torch.float64: (16, 16, 16), torch.float32: (32, 32, 32)}.get(
        x.dtype, (128, 64, 64)
    )
    block_n = block(outputs * factor**2, most)
    return {
        "factor": factor,
        "acc_type": acc_type(x),
        "block_m": pixels,
        "block_c": block(x.shape[1], depth),
        "block_n": block_n,
        # With 4, blocks of 128 by 64 spill registers.
        "num_warps": 8 if pixels * block_n >= 8192 else 4,
        # Pixels are read up to 25 times. Pipelined, they would be copied past the L1 cache.
        "num_stages": 1,
    }


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height, width, channels


def _blocks(x: Tensor, pixels: int, ends: int) -> int:
    """Into how many blocks of so many pixels ``find_region`` cuts all regions."""
    rows, columns = ([1] * min(size, 2 * ends) + [max(size - 2 * ends, 0)] for size in x.shape[2:])
    return sum(triton.cdiv(len(x) * r * c, pixels) for r in rows for c in columns)


def _with_dense_channels(x: Tensor) -> Tensor:
    """x itself if the channels of a pixel are next to each other, else a copy."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _round_up(size: int, multiple: int) -> int:
    return triton.cdiv(size, multiple) * multiple


def _weights(composed: Tensor, x: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    """The composed taps as the weights of each kind of pixel, and those of 1."""
    batch, height, width, channels = _sizes(x)
    outputs, factor = composed.shape[3], options["factor"]
    width_c = _round_up(channels, options["block_c"])
    width_n = _round_up(outputs * factor**2, options["block_n"])
    weights = x.new_empty(_KINDS, _WINDOW, width_c, width_n)
    ones = composed.new_empty(_KINDS, _WINDOW, width_n)
    launch(
        tail_weights_kernel,
        triton.cdiv(_KINDS * _WINDOW * (width_c + 1) * width_n, BLOCK),
        (composed,),
        weights,
        ones,
        height,
        width,
        channels,
        outputs,
        width_c,
        width_n,
        factor=factor,
        block_e=BLOCK,
    )
    return weights, ones


def _unshuffled(grad: Tensor, x: Tensor, options: dict) -> Tensor:
    """Gradient of the output as [N, K r**2, H, W] with dense channels, padded with zeros."""
    batch, height, width, _ = _sizes(x)
    outputs, factor, block_n = grad.shape[1], options["factor"], options["block_n"]
    unshuffled = x.new_empty(batch, height, width, _round_up(outputs * factor**2, block_n))
    pixels = batch * height * width
    launch(
        tail_unshuffle_kernel,
        triton.cdiv(pixels, 64) * (unshuffled.shape[3] // block_n),
        strided(grad),
        unshuffled,
        pixels,
        height,
        width,
        outputs,
        unshuffled.shape[3],
        factor=factor,
        block_m=64,
        block_n=block_n,
    )
    return unshuffled.permute(0, 3, 1, 2)


def _grad_x(unshuffled: Tensor, x: Tensor, composed: Tensor, options: dict) -> Tensor:
    weights, _ = _weights(composed, x, options)
    width_c, width_n = weights.shape[2:]
    ends = 2 if INNER.value[options["factor"]] else 1
    grad_x = empty_images(x, x.shape[1])
    launch(
        tail_images_grad_kernel,
        _blocks(x, options["block_m"], ends) * (width_c // options["block_c"]),
        strided(unshuffled),
        weights,
        strided(grad_x),
        *_sizes(x),
        width_c,
        width_n,
        **options,
    )
    return grad_x


def _grad_composed(unshuffled: Tensor, x: Tensor, composed: Tensor, options: dict) -> Tensor:
    batch, height, width, channels = _sizes(x)
    factor, width_n = options["factor"], unshuffled.shape[1]
    # Of more pixels, the five products of a program would spill registers.
    block_m = min(options["block_m"], 64, 2048 // options["block_n"])
    options = {**options, "block_m": block_m}
    tiles = triton.cdiv(channels, options["block_c"]) * (width_n // options["block_n"])
    # The length of a group depends on the shape alone, so that sums are the same on every device.
    wanted = max(1, PROGRAMS // (tiles * _WINDOW))
    group_pixels = max(_round_up(triton.cdiv(batch * height * width, wanted), block_m), block_m)
    groups = _blocks(x, group_pixels, 1)
    shape = (groups, _WINDOW, channels + 1, width_n)
    partials = x.new_empty(shape, dtype=accumulator_dtype(x))
    launch(
        tail_weights_grad_kernel,
        groups * tiles * 5,
        strided(_with_dense_channels(x)),
        strided(unshuffled),
        partials,
        group_pixels,
        *_sizes(x),
        width_n,
        **{name: value for name, value in options.items() if name != "factor"},
    )
    grad_composed = torch.empty_like(composed)
    launch(
        tail_composed_grad_kernel,
        triton.cdiv(composed.numel(), BLOCK // 4),
        (partials,),
        grad_composed,
        groups,
        group_pixels,
        *_sizes(x),
        composed.shape[3],
        width_n,
        factor=factor,
        acc_type=options["acc_type"],
        block_m=16,
        block_e=BLOCK // 4,
    )
    return grad_composed
