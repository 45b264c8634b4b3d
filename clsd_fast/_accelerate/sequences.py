"""Layers in a row that are one operator, as in ``nn.Sequential`` and its subclasses."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._children import calls_its_class, is_untouched
from .._layout import in_format, in_format_of
from .._tail_axes import STAGES
from ..ops import conv3x3, pixel_shuffle_upsample, residual_blocks, upsample_tail
from ..ops._checks import cast as cast_images
from .activations import options_after
from .blocks import AcceleratedBlock, convs, is_fused, plan, scale
from .classes import Accelerated, is_accelerated, serves, takes
from .convs import NARROW, AcceleratedConv, is_conv

_FACTORS = {stages: factor for factor, stages in STAGES.items()}


class AcceleratedSequential(Accelerated):
    """An ``nn.Sequential`` that runs its layers by the patterns below, as they are at a call."""

    def forward(self, input: Tensor) -> Tensor:
        if not takes(input):
            return super().forward(input)
        return run(list(flattened(children(self))), input)


def children(sequence: nn.Module) -> Iterable[nn.Module]:
    return cast("Iterable[nn.Module]", sequence._modules.values())


def flattened(layers: Iterable[Any]) -> Iterator[Any]:
    """The layers, those of sequences among them in their place."""
    for layer in layers:
        is_sequence = type(layer) is nn.Sequential or is_accelerated(layer, AcceleratedSequential)
        if is_sequence and calls_its_class(layer):
            yield from flattened(children(layer))
        else:
            yield layer


def run(layers: Sequence[Any], x: Any) -> Any:
    """The layers one after another, by the patterns."""
    start = 0
    while start < len(layers):
        pattern, length = _next(layers, start, x)
        run = pattern.run if pattern else one_by_one
        x = run(layers[start : start + length], x)
        start += length
    return x


def one_by_one(layers: Iterable[Any], x: Any) -> Any:
    """Layers are modules, functions, or an operation with a value: ``("v + y", y)``."""
    for layer in layers:
        x = OPERATIONS[layer[0]](x, layer[1]) if type(layer) is tuple else layer(x)
    return x


#: By what they are of a result v and another value y.
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "v + y": lambda v, y: v + y,
    "y + v": lambda v, y: y + v,
    "v += y": operator.iadd,
    "v * y": lambda v, y: v * y,
    "y * v": lambda v, y: y * v,
}


def patterns_in(layers: Iterable[Any]) -> Iterator[tuple["Pattern", list[Any]]]:
    """The patterns in flattened layers with those that they are, in their order."""
    layers, start = list(layers), 0
    while start < len(layers):
        pattern, length = _next(layers, start, None)
        if pattern:
            yield pattern, layers[start : start + length]
        start += length


def _chain(layers: Sequence[nn.Module], start: int) -> int:
    link = _link(layers[start])
    stop = start + 1
    while link and stop < len(layers) and _link(layers[stop]) == link:
        stop += 1
    return stop - start if stop - start > 1 else 0


def _link(module: nn.Module) -> tuple | None:
    """What the blocks of a chain have in common; None for what cannot be in one."""
    if not is_accelerated(module, AcceleratedBlock) or not calls_its_class(module):
        return None
    block = cast(AcceleratedBlock, module)
    if plan(block).operator != "residual_block" or not is_fused(block):
        return None
    factor = scale(block, plan(block).formula)
    if isinstance(factor, Tensor):  # which has a gradient
        return None
    return factor, *((conv.weight.dtype, conv.bias is None) for conv in convs(block))


def _run_chain(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """In channels_last: two transposed maps take less time than contiguous ones in every block."""
    blocks = cast("list[AcceleratedBlock]", layers)
    first, second = zip(*map(convs, blocks), strict=True)
    parameters = (_weights(first), _biases(first), _weights(second), _biases(second))
    factor = scale(blocks[0], plan(blocks[0]).formula)
    y, _ = residual_blocks(in_format(torch.channels_last, x), *parameters, factor)
    return in_format_of(x, y)


def _weights(layers: Sequence[AcceleratedConv]) -> list[Tensor]:
    return [conv.weight for conv in layers]


def _biases(layers: Sequence[AcceleratedConv]) -> list[Tensor]:
    return [conv.bias for conv in layers if conv.bias is not None]


def _stage(layers: Sequence[Any], start: int) -> int:
    if start + 1 >= len(layers) or not is_conv(layers[start]):
        return 0
    return 2 if is_untouched(layers[start + 1], nn.PixelShuffle) else 0


def _run_stage(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    conv, shuffle = cast("tuple[AcceleratedConv, nn.PixelShuffle]", layers)
    return pixel_shuffle_upsample(x, conv.weight, conv.bias, shuffle.upscale_factor)


def _tail(layers: Sequence[nn.Module], start: int) -> int:
    end = start
    while _stage(layers, end):
        end += 2
    if _stages(layers[start:end]) not in _FACTORS or end == len(layers) or not is_conv(layers[end]):
        return 0
    return end + 1 - start if cast(nn.Conv2d, layers[end]).out_channels <= NARROW else 0


def _stages(layers: Sequence[nn.Module]) -> tuple[int, ...]:
    return tuple(shuffle.upscale_factor for shuffle in cast("list[nn.PixelShuffle]", layers[1::2]))


def _run_tail(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    *ups, last = cast("list[AcceleratedConv]", layers[::2])
    biases = [conv.bias for conv in ups]
    factor = _FACTORS[_stages(layers[:-1])]
    return upsample_tail(x, _weights(ups), biases, last.weight, last.bias, factor)


def _ended(layers: Sequence[Any], start: int) -> int:
    """A convolution with a factor, a residual and an activation in this order, or some of them."""
    if not is_conv(layers[start]):
        return 0
    end = start + 1
    for symbol in "*+":
        end += _is_operation(layers, end, symbol)
    if end < len(layers) and options_after(layers[start].weight, layers[end]):
        end += 1
    return end - start if end - start > 1 else 0


def _is_operation(layers: Sequence[Any], place: int, symbol: str) -> bool:
    return place < len(layers) and type(layers[place]) is tuple and symbol in layers[place][0]


def _run_ended(layers: Sequence[Any], x: Tensor) -> Tensor:
    conv, *ends = layers
    options: dict[str, Any] = {}
    for end in ends:
        if type(end) is not tuple:
            options.update(cast(dict, options_after(conv.weight, end)))
        else:
            options["res_scale" if "*" in end[0] else "residual"] = end[1]
    if "residual" in options:
        (images,) = cast_images(x)
        if not _is_residual(options["residual"], conv, images):
            return one_by_one(layers, x)
        x = images
    return conv3x3(x, conv.weight, conv.bias, **options)


def _is_residual(value: Any, conv: AcceleratedConv, x: Tensor) -> bool:
    """Whether the operator adds a value as PyTorch would: no shape or type becomes another."""
    shape = (x.shape[0], conv.weight.shape[0], *x.shape[2:])
    return (
        takes(value) and value.shape == shape and (value.device, value.dtype) == (x.device, x.dtype)
    )


class Pattern(NamedTuple):
    """Layers that an operator stands for."""

    op: str
    #: How many of the layers from ``start`` on they are, 0 if it is not there.
    length: Callable[[Sequence[nn.Module], int], int]
    run: Callable[[Sequence[nn.Module], Tensor], Tensor]


#: Those that cover more before those that they contain.
PATTERNS = (
    Pattern("residual_blocks", _chain, _run_chain),
    Pattern("upsample_tail", _tail, _run_tail),
    Pattern("pixel_shuffle_upsample", _stage, _run_stage),
    Pattern("conv3x3", _ended, _run_ended),
)


def _next(layers: Sequence[nn.Module], start: int, x: Tensor | None) -> tuple[Pattern | None, int]:
    """The pattern that begins at ``start`` and can run on x, or one layer that is called.

    Without x, whatever it may be.
    """
    for pattern in PATTERNS:
        length = pattern.length(layers, start)
        if length and (x is None or serves(pattern.op, x)):
            return pattern, length
    return None, 1
