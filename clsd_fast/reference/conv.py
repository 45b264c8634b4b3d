"""The convolutions in plain PyTorch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import in_format, in_format_of, memory_format


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By parameters that are rounded to x's dtype, if they have another."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    res_scale: float | Tensor,
    relu: bool,
    negative_slope: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    y = res_scale * _convolve(x, weight, bias)
    if residual is not None:
        y = residual + y
    return in_format_of(x, activate(y, relu, negative_slope, slopes))


def activate(y: Tensor, relu: bool, negative_slope: float, slopes: Tensor | None) -> Tensor:
    """As the arguments of ``conv3x3`` say; ``slopes`` may also be [1]."""
    if slopes is not None:
        return F.prelu(y, slopes.to(y.dtype))
    if not relu:
        return y
    return F.relu(y) if negative_slope == 0 else F.leaky_relu(y, negative_slope)


def conv3x3s(
    xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], residual: Tensor | None
) -> list[Tensor]:
    none = [None] * len(xs)
    convolutions = zip(xs, weights, biases or none, strict=True)
    return [conv3x3(*tensors, residual, 1.0, False) for tensors in convolutions]


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    res_scale: float | Tensor,
    save_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the hidden map if it is to be saved, which is channels_last whatever x is."""
    hidden = conv3x3(x, weight1, bias1, None, 1.0, True)
    output = conv3x3(hidden, weight2, bias2, x, res_scale, False)
    if not save_hidden:
        return output, x.new_empty(0)
    # A copy: what an operator returns must not be what it has computed from.
    return output, in_format(torch.channels_last, hidden.clone())


def residual_blocks(
    xs: list[Tensor],
    weights1: list[Tensor],
    biases1: list[Tensor],
    weights2: list[Tensor],
    biases2: list[Tensor],
    res_scale: float | Tensor,
    kept: Sequence[int],
    save_hidden: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The maps after the blocks of ``kept``, and with save_hidden the hidden maps of all."""
    none = [None] * len(weights1)
    parameters = zip(weights1, biases1 or none, weights2, biases2 or none, strict=True)
    maps, hiddens = list(xs), []
    for index, of_block in enumerate(parameters):
        x, hidden = residual_block(maps[index], *of_block, res_scale, save_hidden)
        maps.append(x)
        if save_hidden:
            hiddens.append(hidden)
    count = len(xs)
    return [x for n in kept for x in maps[count * n :][:count]], hiddens


def pixel_shuffle_upsample(
    x: Tensor, weight: Tensor, bias: Tensor | None, upscale_factor: int
) -> Tensor:
    y = _convolve(x, weight, bias)
    # Not F.pixel_shuffle: its gradient has a wrong shape for an empty batch.
    factors = (weight.shape[0] // upscale_factor**2, upscale_factor, upscale_factor)
    y = y.unflatten(1, factors).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    return in_format_of(x, y)


def conv3x3_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    res_scale: float,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    pair = [1, 1]
    needs = [needs_x, needs_weight, needs_bias]
    grads = torch.ops.aten.convolution_backward(
        res_scale * grad_output,
        x,
        weight.to(x.dtype),
        bias_sizes=[weight.shape[0]],
        stride=pair,
        padding=pair,
        dilation=pair,
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=needs,
    )
    formats = (memory_format(x), memory_format(weight), torch.contiguous_format)
    # Not every convolution of PyTorch heeds the mask.
    grad_x, grad_weight, grad_bias = (
        in_format(layout, grad.to(like.dtype)) if need else like.new_empty(0)
        for grad, like, layout, need in zip(grads, (x, weight, weight), formats, needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias


def conv3x3s_backward(
    grad_outputs: list[Tensor],
    xs: list[Tensor],
    weights: list[Tensor],
    needs_x: bool,
    needs_params: bool,
    needs_residual: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Of each convolution, in lists, and of the residual."""
    needs = (needs_x, needs_params, needs_params)
    convolutions = zip(grad_outputs, xs, weights, strict=True)
    grads = [conv3x3_backward(*tensors, 1.0, *needs) for tensors in convolutions]
    grad_xs, grad_weights, grad_biases = map(list, zip(*grads, strict=True))
    residual = xs[0].new_empty(0)
    if needs_residual:
        residual = in_format_of(xs[0], torch.stack(grad_outputs).sum(0))
    return grad_xs, grad_weights, grad_biases, residual


def residual_block_backward(
    grad_output: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    res_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_hidden, grad_weight2, grad_bias2 = conv3x3_backward(
        grad_output, hidden, weight2, res_scale, True, needs_params, needs_params
    )
    grad_hidden = torch.where(hidden <= 0, 0, grad_hidden)  # that of a NaN is kept
    grad_x, grad_weight1, grad_bias1 = conv3x3_backward(
        grad_hidden, x, weight1, 1.0, needs_x, needs_params, needs_params
    )
    if needs_x:
        grad_x = in_format_of(x, grad_x + grad_output)
    return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2


def residual_blocks_backward(
    grad_maps: list[Tensor],
    at: Sequence[int],
    xs: list[Tensor],
    maps: list[Tensor],
    hiddens: list[Tensor],
    weights1: list[Tensor],
    weights2: list[Tensor],
    res_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[list[Tensor], ...]:
    """Gradients of every x, and of every block's parameters in the forward's order."""
    count = len(xs)
    given = {number: grad_maps[count * i :][:count] for i, number in enumerate(at)}
    grads = [torch.zeros_like(grad) for grad in grad_maps[-count:]]
    found: tuple[list[Tensor], ...] = ([], [], [], [])
    blocks = zip([*xs, *maps], hiddens, weights1, weights2, strict=True)
    for index, block in reversed(list(enumerate(blocks))):
        before, chain = divmod(index, count)
        if before + 1 in given:
            grads[chain] = in_format_of(block[0], grads[chain] + given[before + 1][chain])
        grads[chain], *of_block = residual_block_backward(
            grads[chain], *block, res_scale, needs_x or before > 0, needs_params
        )
        for tensors, of_parameter in zip(found, of_block, strict=True):
            tensors.insert(0, of_parameter)
    return grads, *found


def pixel_shuffle_upsample_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    upscale_factor: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = F.pixel_unshuffle(grad_output, upscale_factor)
    return conv3x3_backward(grad, x, weight, 1.0, needs_x, needs_weight, needs_bias)
