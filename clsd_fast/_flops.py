"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators.

Two operations for each multiplication of a convolution or of a product of matrices, as of plain
PyTorch's, and none for anything else: of the layers that the operator stands for, whatever
algorithm computes them. So Winograd counts as a direct convolution, ``upsample_tail`` layer by
layer and not composed, and logits that the backward of ``info_nce`` computes again count once: the
numbers are those that papers print. A forward that also computes its gradients counts them, and a
backward of rows counts both sides' gradients, since it computes both.

The counter's module is only looked for, since it imports Triton: the formulas are registered when
it is imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

import torch

from ._library import NAMESPACE
from ._tail_axes import STAGES
from .reference.tail import of_tails

Shape = Sequence[int]

COUNTER = "torch.utils.flop_counter"


def _convolution(x: Shape, weight: Shape, upscale: int = 1) -> int:
    """Of an output of x's pixels, ``upscale`` times as many each way."""
    return 2 * x[0] * x[2] * x[3] * upscale**2 * prod(weight)


def conv3x3(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _convolution(x, weight)


def conv3x3_backward(
    grad: Shape,
    x: Shape,
    weight: Shape,
    _: float,
    needs_x: bool,
    needs_weight: bool,
    *__: Any,
    **___: Any,
) -> int:
    return (needs_x + needs_weight) * _convolution(x, weight)


def conv3x3s(xs: list[Shape], weights: list[Shape], *_: Any, **__: Any) -> int:
    return sum(map(_convolution, xs, weights))


def conv3x3s_backward(
    grads: Any,
    xs: list[Shape],
    weights: list[Shape],
    needs_x: bool,
    needs_params: bool,
    *_: Any,
    **__: Any,
) -> int:
    return (needs_x + needs_params) * conv3x3s(xs, weights)


def residual_block(x: Shape, weight1: Shape, _: Any, weight2: Shape, *__: Any, **___: Any) -> int:
    return _convolution(x, weight1) + _convolution(x, weight2)


def _block_backward(
    x: Shape, weight1: Shape, weight2: Shape, needs_x: bool, needs_params: bool
) -> int:
    first = (needs_x + needs_params) * _convolution(x, weight1)
    return first + (1 + needs_params) * _convolution(x, weight2)


def residual_block_backward(
    grad: Shape,
    x: Shape,
    hidden: Shape,
    weight1: Shape,
    weight2: Shape,
    _: float,
    *needs: bool,
    **__: Any,
) -> int:
    return _block_backward(x, weight1, weight2, *needs)


def residual_blocks(
    xs: list[Shape], weights1: list[Shape], _: Any, weights2: list[Shape], *__: Any, **___: Any
) -> int:
    return sum(_convolution(xs[0], weight) for weight in (*weights1, *weights2))


def residual_blocks_backward(
    grad_maps: Any,
    at: Any,
    xs: list[Shape],
    maps: Any,
    hiddens: Any,
    weights1: list[Shape],
    weights2: list[Shape],
    _: float,
    needs_x: bool,
    needs_params: bool,
    **__: Any,
) -> int:
    blocks = enumerate(zip(weights1, weights2, strict=True))
    return sum(
        _block_backward(xs[0], *pair, needs_x or i >= len(xs), needs_params) for i, pair in blocks
    )


def _tail_layers(x: Shape, weights: Sequence[Shape | None], factor: int) -> list[int]:
    """Of each convolution of a tail."""
    counts, upscale = [], 1
    for weight, stage in zip(filter(None, weights), (*STAGES[factor], 1), strict=True):
        counts.append(_convolution(x, weight, upscale))
        upscale *= stage
    return counts


def upsample_tail(
    x: Shape,
    up1: Shape,
    _: Any,
    up2: Shape | None,
    __: Any,
    out: Shape,
    ___: Any,
    factor: int,
    **____: Any,
) -> int:
    return sum(_tail_layers(x, (up1, up2, out), factor))


def upsample_tail_backward(
    grad: Shape,
    x: Shape,
    composed: Shape,
    up1: Shape,
    _: Any,
    up2: Shape | None,
    __: Any,
    out: Shape,
    factor: int,
    needs_x: bool,
    needs_params: bool,
    **___: Any,
) -> int:
    first, *others = _tail_layers(x, (up1, up2, out), factor)
    return (needs_x + needs_params) * first + (1 + needs_params) * sum(others)


def _shifts(xs: list[Shape], weight: Shape | None, factor: int) -> int:
    """Of a shift behind each of several tails; its gradient is that of its input."""
    return 0 if weight is None else sum(_convolution(x, weight, factor) for x in xs)


def upsample_tails(*lists_and_factor: Any, **__: Any) -> int:
    *lists, shift_weight, _, factor = lists_and_factor
    tails = sum(upsample_tail(*(*tail, factor)) for tail in of_tails(*lists))
    return tails + _shifts(lists[0], shift_weight, factor)


def upsample_tails_backward(*lists_and_options: Any, **__: Any) -> int:
    *lists, shift_weight, factor, needs_x, needs_params = lists_and_options
    options: Any = (factor, needs_x, needs_params)
    tails = sum(upsample_tail_backward(*(*tail, *options)) for tail in of_tails(*lists))
    return tails + _shifts(lists[1], shift_weight, factor)


def _product(rows: Shape, columns: Shape) -> int:
    return 2 * prod(rows) * columns[-2]


def pairwise_similarity(query: Shape, key: Shape, metric: str, **_: Any) -> int:
    return 0 if metric == "l1" else _product(query, key)


def pairwise_similarity_backward(
    grad: Shape, query: Shape, key: Shape, metric: str, **_: Any
) -> int:
    return 2 * pairwise_similarity(query, key, metric)


def info_nce(
    query: Shape, positive_key: Shape, negative_keys: Shape | None, *options: Any, **_: Any
) -> int:
    saves_gradients = options[-1]
    return (1 + 2 * saves_gradients) * _product(query, negative_keys or positive_key)


def info_nce_backward(
    grad: Shape,
    statistics: Shape,
    query: Shape,
    positive_key: Shape,
    negative_keys: Shape | None,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _product(query, negative_keys or positive_key)


def nothing(*_: Any, **__: Any) -> int:
    return 0


#: By operator.
FORMULAS: dict[str, Callable[..., int]] = {
    "conv3x3": conv3x3,
    "conv3x3_backward": conv3x3_backward,
    "conv3x3s": conv3x3s,
    "conv3x3s_backward": conv3x3s_backward,
    "residual_block": residual_block,
    "residual_block_backward": residual_block_backward,
    "residual_blocks": residual_blocks,
    "residual_blocks_backward": residual_blocks_backward,
    "pixel_shuffle_upsample": conv3x3,
    "pixel_shuffle_upsample_backward": conv3x3_backward,
    "upsample_tail": upsample_tail,
    "upsample_tail_backward": upsample_tail_backward,
    "upsample_tails": upsample_tails,
    "upsample_tails_backward": upsample_tails_backward,
    "l1_losses": nothing,
    "l1_losses_backward": nothing,
    "pairwise_similarity": pairwise_similarity,
    "pairwise_similarity_backward": pairwise_similarity_backward,
    "info_nce": info_nce,
    "info_nce_backward": info_nce_backward,
    "distance_ratio_loss": nothing,
    "distance_ratio_loss_backward": nothing,
}


def _register_with(counter: ModuleType) -> None:
    operators = getattr(torch.ops, NAMESPACE)
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(operators, name))(formula)


class _WhenImported(MetaPathFinder):
    """Finds the counter's module, and lets it be followed by the registration."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register_with(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Now, if the counter is there, else when it is imported."""
    if COUNTER in sys.modules:
        _register_with(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
