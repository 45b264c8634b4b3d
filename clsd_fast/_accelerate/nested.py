"""Modules whose forward calls a layer on another's result, as in ``self.last(self.upsample(x))``.

Such calls are read in the source of the forward (``reading``). What is between them has no name
there, or one that nothing else reads, whatever way the forward takes. The forward of a replaced
module is its own, but for those calls: they are made as one, by ``run_nested``, which runs the
layers as an ``nn.Sequential`` of them is run.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, cast

from torch import nn

from .classes import Accelerated, original, takes
from .reading import Nest, Reading, read
from .sequences import OPERATIONS, Pattern, children, flattened, one_by_one, patterns_in, run


class AcceleratedNested(Accelerated):
    """A module whose forward runs layers that it calls on each other's results by the patterns."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A pickle may be loaded where the source is not: the forward is the module's own then.
        found = _read(cls._accelerated.original) if "_accelerated" in vars(cls) else None
        if found:
            cls.forward = found.forward


def run_nested(*callees_and_x: Any) -> Any:
    """``f(g(x))`` of f, g and x; for an operation, see ``one_by_one``."""
    *callees, x = callees_and_x
    callees.reverse()
    if takes(x):
        return run(list(flattened(callees)), x)
    return one_by_one(callees, x)


def patterns_across(module: nn.Module) -> Iterator[tuple[Pattern, list[nn.Module]]]:
    """The patterns of layers that the forward of a module brings together, in its order."""
    found = None if "forward" in module.__dict__ else _read(original(module))
    for nest in found.nests if found else ():
        callees = list(_callees(module, nest))
        for pattern, layers in patterns_in(flattened(callees)):
            if not any(set(layers) <= set(flattened([callee])) for callee in callees):
                yield pattern, layers


def why_not_nested(module: nn.Module) -> str | None:
    """Why nothing is known of how a module calls layers that patterns begin with."""
    layers = list(module.children())
    if len(layers) < 2 or not any(isinstance(layer, Accelerated) for layer in layers):
        return None
    is_read = "forward" not in module.__dict__ and _read(original(module))
    return None if is_read else "its forward cannot be read: its layers run one by one"


def _read(kind: type[nn.Module]) -> Reading | None:
    """Of what the class was made of; None of TorchScript's, which have no forward to ask."""
    return read(getattr(kind, "forward", None), run_nested)


def _callees(module: nn.Module, nest: Nest) -> Iterable[Any]:
    forward = cast(FunctionType, original(module).forward)
    callees = [_resolve(module, path, forward) for path in nest.paths]
    if not nest.each:
        return callees
    (layers,) = callees
    return children(layers) if isinstance(layers, nn.ModuleList | nn.Sequential) else ()


def _resolve(module: nn.Module, path: Sequence[str], forward: FunctionType) -> Any:
    """What the names stand for, if it is a layer of the module, an operation, or a function of some
    library."""
    root, *names = path
    if root in OPERATIONS:
        return root, None
    is_layer = root == forward.__code__.co_varnames[0]
    found: Any = module if is_layer else forward.__globals__.get(root)
    for name in names:
        if isinstance(found, nn.Module):
            found = found._modules.get(name)
        else:
            found = getattr(found, name, None) if isinstance(found, ModuleType) else None
    return found
