"""Chains of residual blocks: two convolutions (``conv``) a block, those of all chains together.

The first has the ReLU and the second the scale and the skip; in the backward, the gradient of the
hidden map is masked, and that of a map is added to, where they are stored.
"""

import torch
from torch import Tensor

from ..ops._images import empty_hidden, empty_images
from .conv.backward import empty_gradients
from .conv.convolve import Convolution, Epilogue, convolve
from .conv.gradients import WeightGradient, weight_gradients
from .conv.images import dense, finish, writable
from .conv.packing import Parameters, pack

Tensors = list[Tensor]
RELU = Epilogue(relu=True)


def residual_blocks(
    xs: Tensors,
    weights1: Tensors,
    biases1: Tensors,
    weights2: Tensors,
    biases2: Tensors,
    res_scale: float,
    kept: list[int],
    save_hidden: bool,
) -> tuple[Tensors, Tensors]:
    """The maps after the blocks of ``kept``, and with save_hidden the hidden maps of all."""
    chains = len(xs)
    none: list[Tensor | None] = [None] * len(weights1)
    first = pack(list(map(Parameters, weights1, biases1 or none)), xs[0])
    second = pack(list(map(Parameters, weights2, biases2 or none)), xs[0])
    outputs: Tensors = []
    written: Tensors = []
    hiddens: Tensors = []
    inputs = list(map(dense, xs))
    for start in range(0, len(weights1), chains):
        block = slice(start, start + chains)
        hidden = [empty_hidden(x, w) for x, w in zip(xs, weights1[block], strict=True)]
        maps = [empty_images(x, x.shape[1]) for x in xs]
        images = list(map(writable, maps))
        convolve(list(map(Convolution, inputs, hidden, first[block])), RELU)
        tensors = zip(hidden, images, second[block], inputs, strict=True)
        convolve([Convolution(*t) for t in tensors], Epilogue(res_scale))
        if start // chains + 1 in kept:
            outputs, written = outputs + maps, written + images
        if save_hidden:
            hiddens += hidden
        inputs = images
    return finish(outputs, written), hiddens


def residual_blocks_backward(
    grad_maps: Tensors,
    at: list[int],
    xs: Tensors,
    maps: Tensors,
    hiddens: Tensors,
    weights1: Tensors,
    weights2: Tensors,
    res_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensors, ...]:
    """Gradients of every x, and of every block's parameters in the forward's order."""
    inputs, hiddens = list(map(dense, [*xs, *maps])), list(map(dense, hiddens))
    grads = _images_backward(
        grad_maps, at, xs, hiddens, weights1, weights2, res_scale, needs_x, needs_params
    )
    grad_outputs, grad_hiddens, grad_xs = grads
    first = _parameters_backward(grad_hiddens, inputs, weights1, 1.0, needs_params)
    second = _parameters_backward(grad_outputs, hiddens, weights2, res_scale, needs_params)
    return grad_xs or [x.new_empty(0) for x in xs], *first, *second


def _images_backward(
    grad_maps: Tensors,
    at: list[int],
    xs: Tensors,
    hiddens: Tensors,
    weights1: Tensors,
    weights2: Tensors,
    res_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensors, Tensors, Tensors]:
    """Gradients of the results and of the hidden map of every block; of xs, if needed."""
    chains, count = len(xs), len(weights1)
    last = [dense(grad) for grad in grad_maps[-chains:]]
    if not (needs_x or needs_params):
        return last, [], []
    tapped = {number: grad_maps[chains * i :][:chains] for i, number in enumerate(at[:-1])}
    second = pack(list(map(Parameters, weights2)), xs[0], transposed=True)
    first = pack(list(map(Parameters, weights1)), xs[0], transposed=True)
    grad_xs: Tensors = [empty_images(x, x.shape[1]) for x in xs] if needs_x else []
    none: list[Tensor | None] = [None] * chains
    grad_hiddens: Tensors = []
    outputs, below = [last], list(map(writable, grad_xs))
    for start in reversed(range(0, count, chains)):
        block, grads = slice(start, start + chains), outputs[0]
        of_hidden = [torch.empty_like(hidden) for hidden in hiddens[block]]
        of_second = zip(grads, of_hidden, second[block], hiddens[block], strict=True)
        masked = [Convolution(g, h, p, positive=sign) for g, h, p, sign in of_second]
        convolve(masked, Epilogue(res_scale))
        grad_hiddens[:0] = of_hidden
        if start == 0 and not needs_x:
            break
        of_inputs = [torch.empty_like(grad) for grad in grads] if start else below
        added = [dense(grad) for grad in tapped.get(start // chains, [])] or none
        of_first = zip(of_hidden, of_inputs, first[block], grads, added, strict=True)
        convolve([Convolution(*t) for t in of_first])
        if start:
            outputs.insert(0, of_inputs)
    return sum(outputs, []), grad_hiddens, finish(grad_xs, below)


def _parameters_backward(
    grads: Tensors, inputs: Tensors, weights: Tensors, scale: float, needed: bool
) -> tuple[Tensors, Tensors]:
    """Of convolutions' weights and biases; empty if not needed."""
    grad_weights, grad_biases = empty_gradients(weights, needed, needed)
    if needed:
        lists = zip(grads, inputs, grad_weights, grad_biases, strict=True)
        weight_gradients([WeightGradient(*tensors) for tensors in lists], scale)
    return grad_weights, grad_biases
