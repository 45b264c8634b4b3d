"""The upsampler and last convolution of a network as one transposed convolution.

``docs/tail.md`` derives it. With no activation between them, the stages from features at low
resolution to an image are one linear map: each input pixel adds, for each of its channels, a square
of taps to the output, and pixels at the edges a few more (`_tail_axes`).

A composed weight is [C + 1, columns, rows, K], over all taps of both axes. The last of its channels
is one that is 1 everywhere, to multiply with the biases.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import in_format_of
from .._tail_axes import AXES, Axis, Segment


def _path_matrix(axis: Axis, after: Axis) -> Tensor:
    """The signs of the paths, [rows, taps after, taps]."""
    matrix = torch.zeros(1 + max(p.row for p in axis.paths), after.size, axis.size)
    for path in axis.paths:
        matrix[path.row, path.after, path.tap] = path.sign
    return matrix


_PATHS = {
    factor: [_path_matrix(*pair) for pair in zip(axes, axes[1:], strict=False)]
    for factor, axes in AXES.items()
}


def responses(weight: Tensor, bias: Tensor | None, stage: int) -> Tensor:
    """What a pixel adds to the shuffled map, [C + 1, M + 1, 3 r, 3 r].

    The last input channel is 1 everywhere: it adds the bias, and to the last output channel 1.
    """
    factors = (weight.shape[0] // stage**2, stage, stage)
    taps = weight.unflatten(0, factors).flip(4, 5).permute(3, 0, 4, 1, 5, 2)
    taps = F.pad(taps.flatten(4, 5).flatten(2, 3), (0, 0, 0, 0, 0, 1))
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    ones = torch.cat([bias.unflatten(0, factors), weight.new_ones(1, stage, stage)])
    return torch.cat([taps, F.pad(ones, (stage,) * 4).unsqueeze(0)])


def responses_backward(grad: Tensor, stage: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias."""
    grad_taps = grad[:-1, :-1].unflatten(3, (3, stage)).unflatten(2, (3, stage))
    grad_weight = grad_taps.permute(1, 3, 5, 0, 2, 4).flip(4, 5).flatten(0, 2)
    middle = slice(stage, 2 * stage)
    return grad_weight.contiguous(), grad[-1, :-1, middle, middle].flatten()


def compose(weight: Tensor, bias: Tensor | None, after: Tensor, paths: Tensor) -> Tensor:
    """A convolution and pixel shuffle before ``after``, the composed weight of what follows."""
    stage = paths.shape[0] // 3
    products = torch.einsum("cmpq,mxyk->cpqxyk", responses(weight, bias, stage), after)
    paths = paths.to(after)
    return torch.einsum("cpqxyk,pyv,qxu->cuvk", products, paths, paths)


def compose_backward(
    grad: Tensor, weight: Tensor, bias: Tensor | None, after: Tensor, paths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and ``after``."""
    stage = paths.shape[0] // 3
    paths = paths.to(after)
    grad_products = torch.einsum("cuvk,pyv,qxu->cpqxyk", grad, paths, paths)
    grad_responses = torch.einsum("cpqxyk,mxyk->cmpq", grad_products, after)
    grad_after = torch.einsum("cpqxyk,cmpq->mxyk", grad_products, responses(weight, bias, stage))
    return *responses_backward(grad_responses, stage), grad_after


Stages = list[tuple[Tensor, Tensor | None]]


def compose_all(stages: Stages, out_weight: Tensor, factor: int) -> list[Tensor]:
    """The composed weights from each stage to the end, and that of the last convolution alone."""
    composed = [F.pad(out_weight.permute(1, 3, 2, 0).flip(1, 2), (0, 0, 0, 0, 0, 0, 0, 1))]
    for (weight, bias), paths in reversed(list(zip(stages, _PATHS[factor], strict=True))):
        composed.insert(0, compose(weight, bias, composed[0], paths))
    return composed


def compose_all_backward(
    grad: Tensor, stages: Stages, out_weight: Tensor, factor: int
) -> list[Tensor]:
    """Gradients of each weight and bias, and of the last weight, from that of the composed one."""
    grads: list[Tensor] = []
    _, *afters = compose_all(stages, out_weight, factor)
    for (weight, bias), after, paths in zip(stages, afters, _PATHS[factor], strict=True):
        *parameters, grad = compose_backward(grad, weight, bias, after, paths)
        grads += parameters
    return [*grads, grad[:-1].flip(1, 2).permute(3, 0, 2, 1).contiguous()]


class Summand(NamedTuple):
    """One of those that the map is a sum of: the taps of a segment in rows by one in columns.

    It is a transposed convolution of the pixels that have them.
    """

    axis: Axis
    rows: Segment
    columns: Segment

    @property
    def geometry(self) -> dict[str, Any]:
        """An edge's single pixel reaches as many output pixels as there are taps."""
        edges = (segment.edge is not None for segment in (self.rows, self.columns))
        padding = [0 if edge else self.axis.padding for edge in edges]
        return {"stride": [self.axis.upscale] * 2, "padding": padding}

    def piece(self, images: Tensor) -> Tensor:
        """The input pixels, [N, C, h, w]."""
        height, width = images.shape[2:]
        return images[:, :, self.rows.pixels(height), self.columns.pixels(width)]

    def target(self, images: Tensor) -> Tensor:
        """The output pixels."""
        height, width = images.shape[2:]
        return images[:, :, self.rows.target(height), self.columns.target(width)]

    def weight(self, composed: Tensor) -> Tensor:
        """The taps of a composed weight or of its gradient, [C, K, rows, columns]."""
        return composed.permute(0, 3, 2, 1)[:, :, self.rows.taps, self.columns.taps]

    def convolve(self, images: Tensor, composed: Tensor) -> Tensor:
        """What is added to the output pixels."""
        piece, weight = _convolvable(self.piece(images), self.weight(composed))
        return F.conv_transpose2d(piece, weight, **self.geometry).to(images.dtype)


def _convolvable(images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """In float32 if need be: where bfloat16 images are one pixel wide, oneDNN's gradient of the
    weight reads memory that nothing wrote."""
    tensors = images, *others
    if images.dtype == torch.bfloat16 and images.shape[3] == 1:
        return tuple(tensor.float().contiguous() for tensor in tensors)
    return tensors


def _summands(factor: int, height: int, width: int) -> list[Summand]:
    """Those for images of this size; the first is that of every pixel."""
    axis = AXES[factor][0]
    return [
        Summand(axis, rows, columns)
        for rows, columns in product(axis.segments, axis.segments)
        if rows.exists(height) and columns.exists(width)
    ]


def apply(x: Tensor, composed: Tensor, factor: int) -> Tensor:
    """Images [N, C, H, W] by a composed weight [C, ...]: [N, K, r H, r W]."""
    first, *others = _summands(factor, *x.shape[2:])
    output = first.convolve(x, composed)
    for summand in others:
        summand.target(output).add_(summand.convolve(x, composed))
    return output


def apply_backward(
    grad: Tensor, x: Tensor, composed: Tensor, factor: int, needs_x: bool, needs_composed: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of images and composed weight; zeros if not needed."""
    # Of the gradient, which vmap may have batched without them.
    grad_x, grad_composed = grad.new_zeros(x.shape), grad.new_zeros(composed.shape)
    needs = [needs_x, needs_composed, False]
    for summand in _summands(factor, *x.shape[2:]):
        tensors = summand.piece(x), summand.weight(composed), summand.target(grad)
        piece, weight, target = _convolvable(*tensors)
        grads = torch.ops.aten.convolution_backward(
            target,
            piece,
            weight,
            None,
            **summand.geometry,
            dilation=[1, 1],
            transposed=True,
            output_padding=[0, 0],
            groups=1,
            output_mask=needs,
        )
        if needs_x:
            summand.piece(grad_x).add_(grads[0])
        if needs_composed:
            summand.weight(grad_composed).add_(grads[1])
    return grad_x, grad_composed


def _like(size: int, factor: int, device: torch.device) -> Tensor:
    """For each of ``factor * size`` pixels, its like on an axis as short as can be.

    Where the input is 1 everywhere, all pixels but those at the edges are alike.
    """
    position = torch.arange(factor * size, device=device)
    pixel = position // factor
    like = torch.where(pixel == size - 1, min(size, 3) - 1, pixel.clamp(max=1))
    return like * factor + position % factor


def bias_map(composed: Tensor, factor: int, height: int, width: int) -> Tensor:
    """What the biases of the stages add to each pixel of the output, [K, r H, r W]."""
    ones = composed.new_ones(1, 1, min(height, 3), min(width, 3))
    bias = apply(ones, composed[-1:], factor)[0]
    for dim, size in ((1, height), (2, width)):
        bias = bias.index_select(dim, _like(size, factor, composed.device))
    return bias


def bias_map_backward(grad: Tensor, composed: Tensor, factor: int) -> Tensor:
    """Gradient of the composed weight's last channel."""
    sizes = [size // factor for size in grad.shape[1:]]
    for dim, size in enumerate(sizes, start=1):
        shape = [*grad.shape]
        shape[dim] = factor * min(size, 3)
        grad = grad.new_zeros(shape).index_add(dim, _like(size, factor, grad.device), grad)
    ones = composed.new_ones(1, 1, *(min(size, 3) for size in sizes))
    return apply_backward(grad.unsqueeze(0), ones, composed[-1:], factor, False, True)[1]


def stages_of(
    weight1: Tensor, bias1: Tensor | None, weight2: Tensor | None, bias2: Tensor | None
) -> Stages:
    """Weight and bias of each stage, from those of both; for one stage, the second's are None."""
    return [(weight1, bias1)] if weight2 is None else [(weight1, bias1), (weight2, bias2)]


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
    """Output and composed weight, as in ``SCHEMAS``."""
    tail = up_weight1, up_bias1, up_weight2, up_bias2, out_weight, out_bias
    return _tail(x, *tail, upscale_factor=upscale_factor, dtype=x.dtype)


def _tail(x: Tensor, *tail: Any, upscale_factor: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same with the output in a dtype."""
    *of_stages, out_weight, out_bias = tail
    stages = stages_of(*of_stages)
    composed = compose_all(stages, out_weight, upscale_factor)[0]
    output = apply(x, composed[:-1].to(x.dtype), upscale_factor)
    # Added in the parameters' dtype: the gradient of the biases is a sum over all pixels.
    output = output + bias_map(composed, upscale_factor, *x.shape[2:])
    if out_bias is not None:
        output = output + out_bias.view(-1, 1, 1)
    return in_format_of(x, output.to(dtype)), composed.contiguous()


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
    taps, needs = composed[:-1].to(x.dtype), (needs_x, needs_params)
    grad_x, grad_taps = apply_backward(grad_output, x, taps, upscale_factor, *needs)
    grad_x = in_format_of(x, grad_x) if needs_x else x.new_empty(0)
    none = [composed.new_empty(0) for _ in range(6)]
    if not needs_params:
        return grad_x, *none
    grad = grad_output.to(composed.dtype)
    grad_biases = bias_map_backward(grad.sum(0), composed, upscale_factor)
    grad_composed = torch.cat([grad_taps.to(composed.dtype), grad_biases])
    stages = stages_of(up_weight1, up_bias1, up_weight2, up_bias2)
    *ups, grad_out = compose_all_backward(grad_composed, stages, out_weight, upscale_factor)
    grads = (*(ups + none)[:4], grad_out, grad.sum((0, 2, 3)))
    weights = (up_weight1, None, up_weight2, None, out_weight, None)
    return grad_x, *(
        grad if weight is None else in_format_of(weight, grad)
        for grad, weight in zip(grads, weights, strict=True)
    )


def upsample_tails(
    xs: list[Tensor],
    up_weights1: list[Tensor],
    up_biases1: list[Tensor],
    up_weights2: list[Tensor],
    up_biases2: list[Tensor],
    out_weights: list[Tensor],
    out_biases: list[Tensor],
    shift_weight: Tensor | None,
    shift_bias: Tensor | None,
    upscale_factor: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and composed weights of each tail, as in ``SCHEMAS``."""
    if shift_weight is not None:
        assert shift_bias is not None
        out_weights = [_shifted(shift_weight, weight) for weight in out_weights]
        biases = [_shifted(shift_weight, bias) + shift_bias for bias in out_biases]
        out_biases = biases or [shift_bias] * len(xs)
    lists = xs, up_weights1, up_biases1, up_weights2, up_biases2, out_weights, out_biases
    dtype = xs[0].dtype if shift_weight is None else shift_weight.dtype
    options: Any = {"upscale_factor": upscale_factor, "dtype": dtype}
    pairs = [_tail(*tail, **options) for tail in of_tails(*lists)]
    outputs, composed = zip(*pairs, strict=True)
    return list(outputs), list(composed)


def upsample_tails_backward(
    grad_outputs: list[Tensor],
    xs: list[Tensor],
    composed: list[Tensor],
    up_weights1: list[Tensor],
    up_biases1: list[Tensor],
    up_weights2: list[Tensor],
    up_biases2: list[Tensor],
    out_weights: list[Tensor],
    shift_weight: Tensor | None,
    upscale_factor: int,
    needs_x: bool,
    needs_params: bool,
) -> tuple[list[Tensor], ...]:
    """Of each tail, in lists."""
    if shift_weight is not None:
        out_weights = [_shifted(shift_weight, weight) for weight in out_weights]
        grad_outputs = [grad.to(xs[0].dtype) for grad in grad_outputs]
    lists = grad_outputs, xs, composed, up_weights1, up_biases1, up_weights2, up_biases2
    options: Any = (upscale_factor, needs_x, needs_params)
    tails = of_tails(*lists, out_weights)
    grads = [upsample_tail_backward(*(*tail, *options)) for tail in tails]
    *others, grad_weights, grad_biases = map(list, zip(*grads, strict=True))
    if shift_weight is not None and needs_params:
        back = shift_weight.transpose(0, 1)
        grad_weights, grad_biases = (
            [_shifted(back, grad) for grad in grads] for grads in (grad_weights, grad_biases)
        )
    return *others, grad_weights, grad_biases


def _shifted(shift_weight: Tensor, parameter: Tensor) -> Tensor:
    """The last convolution's weight or bias with the shift's weight behind it."""
    return in_format_of(parameter, torch.tensordot(shift_weight.flatten(1), parameter, 1))


def of_tails(*lists: Sequence) -> Iterator[Any]:
    """The tuple of what belongs to each tail; None of an empty list."""
    none = [None] * len(lists[0])
    return zip(*(tensors or none for tensors in lists), strict=True)
