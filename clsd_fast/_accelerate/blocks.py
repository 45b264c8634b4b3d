"""Modules of one or two convolutions whose forward is one formula of them and of activations.

Their names and their Python differ, so which formula it is gets decided by numbers: a copy in
float64, with random parameters, is compared with each.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._children import calls_its_class
from ..backend import use_backend
from ..ops import conv3x3, residual_block
from .activations import NAMES, activation, options_after
from .classes import Accelerated, is_sequential, original, serves
from .convs import AcceleratedConv, is_conv

#: Largest error, relative to the largest result, of a formula that a module computes.
FLOAT64_SHARE = 1e-10


class Formula(NamedTuple):
    """``a(conv(x))`` of one convolution; of two, with f = conv(a(conv(x))), ``x + scale * f`` or
    ``b(x + scale * f)``, where a and b are activations, or one that is both."""

    convs: int
    activated_last: bool
    #: The attribute of the module that has it, or a number.
    scale: str | float


class Block(NamedTuple):
    """What a block was found to be: its layers in the order of registration, and its formula."""

    layers: tuple[str, ...]
    formula: Formula

    @property
    def operator(self) -> str:
        is_residual = self.formula.convs == 2 and not self.formula.activated_last
        return "conv3x3" if not is_residual or _SLOPED & set(self.layers) else "residual_block"


#: Activations of conv3x3 alone.
_SLOPED = {"leaky_relu", "prelu"}


class AcceleratedBlock(Accelerated):
    """A block on its formula's operators while its layers are those that were found."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and serves("residual_block", args[0]) and is_fused(self):
            return _run(self, args[0])
        return super().forward(*args, **kwargs)


def is_fused(block: AcceleratedBlock) -> bool:
    return tuple(map(layer, layers(block))) == plan(block).layers and None not in _ends(block)


def plan(block: AcceleratedBlock) -> Block:
    return cast(Block, block._accelerated.plan)


def scale(block: nn.Module, formula: Formula) -> float | Tensor:
    return getattr(block, formula.scale) if isinstance(formula.scale, str) else formula.scale


def _run(block: AcceleratedBlock, x: Tensor) -> Tensor:
    formula = plan(block).formula
    first, *others = convs(block)
    inner, last = cast("list[dict[str, Any]]", _ends(block))
    factor = scale(block, formula)
    if plan(block).operator == "residual_block":
        (second,) = others
        return residual_block(x, first.weight, first.bias, second.weight, second.bias, factor)
    y = conv3x3(x, first.weight, first.bias, **inner)
    for second in others:
        options = {**last, "residual": x, "res_scale": factor}
        y = conv3x3(y, second.weight, second.bias, **options)
    return y


def _ends(block: nn.Module) -> list[dict[str, Any] | None]:
    """By which options the first and the last convolution of a block end in its activations."""
    first, last = convs(block)[0], convs(block)[-1]
    inner, outer = activations(block)
    is_activated = isinstance(block, AcceleratedBlock) and plan(block).formula.activated_last
    end = options_after(last.weight, outer) if is_activated else {}
    return [options_after(first.weight, inner), end]


def activations(block: nn.Module) -> tuple[Any, Any]:
    """Those between its convolutions and after the last; without modules of any, the ReLU."""
    found = [module for module in dict.fromkeys(layers(block)) if activation(module)]
    return (found[0], found[-1]) if found else (F.relu, F.relu)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules below a module, each before its own."""
    for child in module._modules.values():
        if child is not None:
            yield child
            yield from layers(child)


def convs(module: nn.Module) -> list[AcceleratedConv]:
    """The replaced convolutions of a module, itself or below it."""
    return [conv for conv in (module, *layers(module)) if isinstance(conv, AcceleratedConv)]


def layer(module: nn.Module) -> str:
    """What a layer of a block is; the name of its class if no block has such."""
    if is_conv(module):
        return "conv"
    if not calls_its_class(module):
        return "hooked"
    kind = original(module)
    if is_sequential(kind):
        return "sequential"
    return activation(module) or ("identity" if kind is nn.Identity else kind.__name__)


def find_block(module: nn.Module) -> Block | str | None:
    """What a block is, or why a module with a block's convolutions is none; None for others."""
    found = tuple(map(layer, layers(module)))
    count = sum(isinstance(below, nn.Conv2d) for below in layers(module))
    if isinstance(module, nn.Sequential) or not 1 <= found.count("conv") == count <= 2:
        return None
    reason = _why_not(module, found)
    formula = None if reason else _formula(module, count)
    if formula:
        return Block(found, formula)
    # Most modules with one convolution are meant as no block.
    return (reason or "it computes neither x + s f nor a(x + s f)") if count == 2 else None


def _why_not(module: nn.Module, found: tuple[str, ...]) -> str | None:
    for kind in found:
        if kind not in ("conv", "identity", "sequential", *NAMES.values()):
            return f"{kind} among its layers"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    own = (*module._parameters.values(), *module._buffers.values())
    if any(tensor is not None for tensor in own):
        return "parameters or buffers beside those of its convolutions"
    return None


def _formula(block: nn.Module, count: int) -> Formula | None:
    """The formula that a block computes, if it is one of those."""
    channels = [n for conv in convs(block) for n in conv.weight.shape[1::-1]]
    if count == 2 and channels != [*channels[:2], *reversed(channels[:2])]:
        return None
    try:
        probe = copy.deepcopy(block).to_empty(device="cpu").double()
    except Exception:  # whatever somebody else's class is made of
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), use_backend("reference"):
        for parameter in probe.parameters():
            parameter.normal_(generator=generator)
        x = torch.empty(2, channels[0], 5, 6, dtype=torch.float64, device="cpu")
        x.normal_(generator=generator)
        return next((f for f in _candidates(probe, count, x) if _computes(probe, f, x)), None)


def _candidates(block: nn.Module, count: int, x: Tensor) -> Iterator[Formula]:
    if count == 1:
        yield Formula(1, True, 1.0)
        return
    numbers = [name for name, value in vars(block).items() if type(value) in (int, float)]
    scales: list[str | float] = [*numbers, 1.0]
    for activated_last in (False, True):
        for factor in scales:
            yield Formula(2, activated_last, factor)
    result = _call(block, x)
    if result is not None and result.shape == x.shape:
        branch = _evaluate(block, Formula(2, False, 1.0), x) - x
        share = ((result - x) * branch).sum() / branch.square().sum()
        yield Formula(2, False, round(share.item(), 12))


def _computes(block: nn.Module, formula: Formula, x: Tensor) -> bool:
    """Whether the formula is the block's, and still is when the scale is another number."""
    if isinstance(formula.scale, str):
        given = getattr(block, formula.scale)
        setattr(block, formula.scale, given + 0.375)
        follows = _agrees(block, formula, x)
        setattr(block, formula.scale, given)
        if not follows:
            return False
    return _agrees(block, formula, x)


def _agrees(block: nn.Module, formula: Formula, x: Tensor) -> bool:
    """Of training and of evaluation."""
    expected = _evaluate(block, formula, x)
    limit = FLOAT64_SHARE * expected.abs().max()
    for mode in (True, False):
        result = _call(block.train(mode), x)
        if result is None or result.shape != expected.shape:
            return False
        if not (result - expected).abs().max() <= limit:
            return False
    return True


def _evaluate(block: nn.Module, formula: Formula, x: Tensor) -> Tensor:
    first, *others = convs(block)
    inner, last = activations(block)
    y = inner(first(x))
    if not others:
        return y
    y = x + scale(block, formula) * others[0](y)
    return last(y) if formula.activated_last else y


def _call(block: nn.Module, x: Tensor) -> Tensor | None:
    """What the block makes of x; None if it fails, makes no such images, or writes into x."""
    given = x.clone()
    try:
        result = type(block).forward(block, given)
    except Exception:  # whatever somebody else's forward does
        return None
    fits = isinstance(result, Tensor) and result.dtype == x.dtype and torch.equal(given, x)
    return result if fits else None
