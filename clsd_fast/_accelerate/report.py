"""What was replaced by what, and what was left alone for which reason."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from torch import nn

from .blocks import AcceleratedBlock, convs, is_fused, layers, plan
from .classes import Accelerated, is_accelerated
from .convs import NARROW, AcceleratedConv
from .find import differs, find
from .nested import AcceleratedNested, patterns_across
from .sequences import AcceleratedSequential, children, flattened, patterns_in


class Gain(NamedTuple):
    """How many times as fast as PyTorch's best an operator is (docs/cpu.md)."""

    #: Forward and backward.
    times: str
    #: Of the narrowest maps that were measured, images aside.
    channels: int


GAINS = {
    "residual_block": Gain("1.6 to 3.4", 32),
    "residual_blocks": Gain("1.6 to 3.4", 32),
    "upsample_tail": Gain("9 to 13", 64),
    "pixel_shuffle_upsample": Gain("1.5 to 4.1", 64),
    "conv3x3 from an image": Gain("1.1 to 1.6", 64),
    "conv3x3 to an image": Gain("1.3 to 2.1", 64),
    "conv3x3": Gain("2.0 to 3.0", 36),
}


class Row(NamedTuple):
    """A module, or layers in a row, and what runs them."""

    #: Its name in the model, of layers the first one's.
    name: str
    #: The name of its class, of layers the classes of all.
    layer: str
    #: The operator; None if it was left alone.
    operator: str | None
    #: Why it was left alone.
    reason: str | None
    #: How many times as fast the operator is on a CPU, in training, where that was measured.
    gain: str | None


class Report(NamedTuple):
    """The rows of a model; as a text, a table in which rows that say the same are one."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        groups: dict[tuple, list[str]] = {}
        for name, *same in self.rows:
            groups.setdefault(tuple(same), []).append(name or "(the model)")
        table = [("module", "layer", "runs on", "times as fast (CPU, training)")]
        for (layer, operator, reason, gain), names in groups.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            runs_on = operator or f"left alone: {reason}"
            table.append((names[0] + others, layer, runs_on, gain or ""))
        replaced = sum(row.operator is not None for row in self.rows)
        title = f"{replaced} replaced" if replaced else "nothing replaced: the model is as it was"
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
        return "\n".join([title, *(lines if self.rows else ())])


def make_report(model: nn.Module) -> Report:
    names = {module: name for name, module in model.named_modules()}
    covered: set[nn.Module] = set()
    rows = [row for module in names for row in _rows(module, names, covered)]
    places = {name: place for place, name in enumerate(names.values())}
    return Report(tuple(sorted(rows, key=lambda row: places[row.name])))


def _rows(module: nn.Module, names: dict[nn.Module, str], covered: set[nn.Module]) -> Iterator[Row]:
    """Those of a module that no row before covers; the modules of an operator become covered."""
    for operator, gain, stands_for in _operators(module):
        if stands_for[0] not in covered:
            for layer in _modules(stands_for):
                covered.update((layer, *layers(layer)))
            yield Row(names[stands_for[0]], _classes(stands_for), operator, None, gain)
    reason = None if is_accelerated(module) or module in covered else _why_left(module)
    if reason:
        yield Row(names[module], type(module).__name__, None, reason, None)


def _modules(stands_for: Sequence[Any]) -> Iterator[nn.Module]:
    """Those among layers that may be functions, too."""
    return (layer for layer in stands_for if isinstance(layer, nn.Module))


def _operators(module: nn.Module) -> Iterator[tuple[str, str | None, Sequence[Any]]]:
    """The operators that a replaced module calls, each with its gain and what it stands for."""
    if is_accelerated(module, AcceleratedSequential):
        for pattern, stands_for in patterns_in(flattened(children(module))):
            yield pattern.op, _gain(pattern.op, stands_for), stands_for
    elif is_accelerated(module, AcceleratedNested):
        for pattern, stands_for in patterns_across(module):
            yield pattern.op, _gain(pattern.op, stands_for), stands_for
    elif is_accelerated(module, AcceleratedBlock):
        block = cast(AcceleratedBlock, module)
        operator = plan(block).operator
        if is_fused(block):
            yield operator, _gain(operator, [block]), [block]
    elif is_accelerated(module, AcceleratedConv):
        yield "conv3x3", _gain("conv3x3", [module]), [module]


def _gain(operator: str, stands_for: Sequence[Any]) -> str | None:
    """None of maps narrower than those that were measured."""
    found = [conv for module in _modules(stands_for) for conv in convs(module)]
    channels = [size for conv in found for size in (conv.weight.shape[1], conv.weight.shape[0])]
    if operator == "conv3x3" and channels[0] <= NARROW:
        operator = "conv3x3 from an image"
    elif operator == "conv3x3" and channels[-1] <= NARROW:
        operator = "conv3x3 to an image"
    fewest = min(number for number in channels if number > NARROW)
    return GAINS[operator].times if fewest >= GAINS[operator].channels else None


def _classes(layers: Sequence[Any]) -> str:
    """As ``Conv2d + ReLU``, or ``3 ResBlock``."""
    names = [_class(layer) for layer in layers]
    if len(set(names)) > 1:
        return " + ".join(names)
    return names[0] if len(names) == 1 else f"{len(names)} {names[0]}"


def _class(layer: Any) -> str:
    if type(layer) is tuple:
        return "factor" if "*" in layer[0] else "sum"
    return type(layer).__name__ if isinstance(layer, nn.Module) else layer.__name__


def _why_left(module: nn.Module) -> str | None:
    if isinstance(module, Accelerated):
        return "parametrised since accelerate was called"
    found = find(module)
    if not isinstance(found, type):
        return found
    return differs(module, found) or "accelerate was not called since it is as it is"
