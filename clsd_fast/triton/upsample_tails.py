"""Composed tails: composing their weights (``tail.compose``), applying them (``tail.apply``) and
the gradients of both (``tail.gradients``), all tails of a kind by the same launches.

Nothing is summed by atomics: the gradient of a composed weight is summed over groups of pixels
first, then over the groups in their order.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._images import empty_images
from ..reference.tail import of_tails
from .conv.images import MOST_BRANCHES, parts_of_a_kind
from .tail import apply, gradients
from .tail.compose import Parameters, compose_all
from .tail.compose_gradients import compose_all_backward
from .tail.pixels import options_of, with_dense_channels

Tensors = list[Tensor]
#: Pixels are numbered in 32 bits, blocks beyond the last of them included.
MOST_PIXELS = 2**30


class Tail(NamedTuple):
    """The tensors of one; x with dense channels."""

    x: Tensor
    up_weight1: Tensor
    up_bias1: Tensor | None
    up_weight2: Tensor | None
    up_bias2: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None = None
    composed: Tensor | None = None
    #: And its gradient, of forward and backward.
    output: Tensor | None = None


def upsample_tails(
    xs: Tensors,
    up_weights1: Tensors,
    up_biases1: Tensors,
    up_weights2: Tensors,
    up_biases2: Tensors,
    out_weights: Tensors,
    out_biases: Tensors,
    shift_weight: Tensor | None,
    shift_bias: Tensor | None,
    upscale_factor: int,
) -> tuple[Tensors, Tensors]:
    """[N, C, H, W] each to [N, K, r H, r W]; and the composed weights [C + 1, taps, taps, K].

    Parameters are in the accumulator's dtype. Images whose channels are apart, as contiguous ones'
    are, are copied once.
    """
    _check_size(xs[0])
    shift, dtype = None, xs[0].dtype
    if shift_weight is not None and shift_bias is not None:
        shift, dtype = (shift_weight.contiguous(), shift_bias.contiguous()), shift_weight.dtype
    outputs = [empty_images(x, out_weights[0].shape[0], upscale_factor) for x in xs]
    outputs = [torch.empty_like(output, dtype=dtype) for output in outputs]
    parameters = up_weights1, up_biases1, up_weights2, up_biases2, out_weights, out_biases
    no_weights: Tensors = []
    lists = of_tails(with_dense_channels(xs), *parameters, no_weights, outputs)
    tails = [Tail(*tensors) for tensors in lists]
    composed: dict[int, Tensor] = {}
    for indices, of_kind in _by_kind(tails):
        images = [tail.x for tail in of_kind]
        of_parameters = _parameters(of_kind, shift_weight)
        (found, *_), turned = compose_all(of_parameters, upscale_factor, images[0].dtype)
        options = options_of(images[0], found[0].shape[3], upscale_factor)
        biases, written = zip(*((tail.out_bias, tail.output) for tail in of_kind), strict=True)
        apply.forward(images, found, turned, biases, written, shift, options)
        composed |= zip(indices, found, strict=True)
    return outputs, [composed[i] for i in range(len(xs))]


def upsample_tails_backward(
    grad_outputs: Tensors,
    xs: Tensors,
    composed: Tensors,
    up_weights1: Tensors,
    up_biases1: Tensors,
    up_weights2: Tensors,
    up_biases2: Tensors,
    out_weights: Tensors,
    shift_weight: Tensor | None,
    upscale_factor: int,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensors, ...]:
    """Gradients of xs and of the forward's parameters in their order; empty if not needed."""
    parameters = up_weights1, up_biases1, up_weights2, up_biases2, out_weights
    no_biases: Tensors = []
    lists = of_tails(with_dense_channels(xs), *parameters, no_biases, composed, grad_outputs)
    tails = [Tail(*tensors) for tensors in lists]
    grad_xs = [empty_images(x, x.shape[1]) if needs_x else x.new_empty(0) for x in xs]
    grads = [[weight.new_empty(0) for weight in composed] for _ in range(6)]
    for indices, of_kind in _by_kind(tails):
        images, weights, of_outputs = (
            [getattr(tail, name) for tail in of_kind] for name in ("x", "composed", "output")
        )
        options = options_of(images[0], weights[0].shape[3], upscale_factor)
        squares, turned = gradients.lay_out(of_outputs, weights, images[0], options)
        if needs_x:
            apply.images_grad(squares, turned, [grad_xs[i] for i in indices], options)
        if needs_params:
            of_composed = gradients.composed_grads(images, squares, weights[0], options)
            of_parameters = _parameters(of_kind, shift_weight)
            of_stages, *of_last = compose_all_backward(of_composed, of_parameters, upscale_factor)
            places = [*range(len(of_stages)), 4, 5]
            for place, found in zip(places, [*of_stages, *of_last], strict=True):
                for i, grad in zip(indices, found, strict=True):
                    grads[place][i] = grad
    return grad_xs, *grads


def _check_size(x: Tensor) -> None:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if pixels > MOST_PIXELS:
        raise RuntimeError(
            f"upsample_tail: expected at most {MOST_PIXELS} pixels for its Triton kernel, "
            f"got {pixels}"
        )


def _by_kind(tails: Sequence[Tail]) -> Iterator[tuple[list[int], list[Tail]]]:
    """Indices of tails that lie alike, as many as a launch takes, and those tails."""

    def kind(tail: Tail) -> tuple:
        return tuple(None if t is None else (t.dtype, t.shape, t.stride()) for t in tail)

    for indices in parts_of_a_kind(map(kind, tails), MOST_BRANCHES):
        yield indices, [tails[i] for i in indices]


def _parameters(tails: Sequence[Tail], shift_weight: Tensor | None) -> Parameters:
    """Of tails that lie alike."""

    def given(tensors: Iterable[Tensor | None]) -> Tensors:
        return [tensor for tensor in tensors if tensor is not None]

    _, weights1, biases1, weights2, biases2, out_weights, *_ = map(given, zip(*tails, strict=True))
    stages = [(weights1, biases1 or None)]
    if weights2:
        stages.append((weights2, biases2 or None))
    shift = None if shift_weight is None else shift_weight.contiguous()
    return Parameters(stages, out_weights, shift)
