"""What a module could be, and whether it then computes the same."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .blocks import AcceleratedBlock, Block, find_block
from .classes import Accelerated, Replacement, accelerated_class, is_sequential
from .convs import AcceleratedConv, why_not_conv
from .nested import AcceleratedNested, patterns_across, why_not_nested
from .sequences import AcceleratedSequential, children, flattened, patterns_in

#: Of networks for images, those after which convolutions run alone.
OTHER_ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Mish)


def children_first(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """Every module once, those below it before it."""
    seen = set() if seen is None else seen
    if module not in seen:
        seen.add(module)
        for child in module.children():
            yield from children_first(child, seen)
        yield module


def find(module: nn.Module) -> type[Accelerated] | str | None:
    """The class that a module could have, the children having theirs; or why none; None where
    nobody would expect one."""
    kind = type(module)
    if isinstance(module, Accelerated):
        return None
    if isinstance(module, nn.Conv2d):
        return why_not_conv(module) or _derived(AcceleratedConv, module)
    if isinstance(module, OTHER_ACTIVATIONS):
        return "no kernel for this activation"
    if is_sequential(kind):
        if "forward" in module.__dict__ or not any(patterns_in(flattened(children(module)))):
            return None
        return _derived(AcceleratedSequential, module)
    block = find_block(module)
    if isinstance(block, Block):
        return _derived(AcceleratedBlock, module, block)
    if any(patterns_across(module)):
        return _derived(AcceleratedNested, module)
    return why_not_nested(module) or block


def _derived(
    kind: type[Accelerated], module: nn.Module, plan: tuple = ()
) -> type[Accelerated] | str:
    try:
        return accelerated_class(Replacement(kind, type(module), plan))
    except TypeError:
        return "its class takes no subclasses"


def differs(module: nn.Module, cls: type[Accelerated]) -> str | None:
    """How the module with that class would differ from what it is, on its device; None if it does
    not by more than rounding. Where layers are called one by one, each is run by itself."""
    if issubclass(cls, AcceleratedSequential | AcceleratedNested):
        return None
    weight = next(module.parameters())
    if weight.is_meta:
        return None
    x = torch.randn(1, weight.shape[1], 7, 6, generator=torch.Generator().manual_seed(0))
    x = x.to(weight)
    try:
        share = _difference(module, cls, x)
    except Exception as error:  # of somebody else's forward
        return f"it does not run by itself: {type(error).__name__}"
    limit = torch.finfo(x.dtype).eps ** 0.5
    return None if share <= limit else f"its results differ by {share:.2g} of the largest"


def _difference(module: nn.Module, cls: type[Accelerated], x: Tensor) -> float:
    kind = type(module)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        expected = kind.forward(module, x.clone()).double()
        module.__class__ = cls
        try:
            result = cls.forward(module, x).double()
        finally:
            module.__class__ = kind
    return ((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
