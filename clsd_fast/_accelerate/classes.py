"""The class of a replaced module: a subclass of what it was."""

import copyreg
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._torch import has_amx
from ..backend import has_kernel
from ..ops._checks import DTYPES

_16_BIT = (torch.bfloat16, torch.float16)
#: Of 16-bit images on a CPU, oneDNN's convolutions are the faster ones (docs/cpu.md).
_HAS_AMX = has_amx()


class Replacement(NamedTuple):
    """What a class was made of."""

    kind: type["Accelerated"]
    original: type[nn.Module]
    #: What was found out about the module, if anything.
    plan: tuple = ()


class Accelerated(nn.Module):
    """Base of the forwards that call operators; ``super().forward`` is the module as it was.

    Whatever else such classes had would hide what a module of somebody else has by the same name.
    """

    _accelerated: ClassVar[Replacement]
    #: The class itself, which tells it from classes that others derive of it (parametrisations).
    _accelerated_class: ClassVar[type["Accelerated"]]

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        """For pickle and deepcopy, which find classes by their names: of two, ours is no name's."""
        reduced = super().__reduce_ex__(max(protocol, 2))
        if isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        _, (_, *arguments), *state = reduced
        return _new, (self._accelerated, *arguments), *state


_classes: dict[Replacement, type[Accelerated]] = {}


def accelerated_class(replacement: Replacement) -> type[Accelerated]:
    """The original with the forward of the kind, by the same name: always the same class."""
    if replacement not in _classes:
        kind, original, _ = replacement
        names = ("__module__", "__qualname__", "__doc__")
        attributes = {name: getattr(original, name) for name in names}
        attributes["_accelerated"] = replacement
        cls = cast("type[Accelerated]", type(original.__name__, (kind, original), attributes))
        cls._accelerated_class = _classes[replacement] = cls
    return _classes[replacement]


def _new(replacement: Replacement, *arguments: Any) -> nn.Module:
    cls = accelerated_class(replacement)
    return cls.__new__(cls, *arguments)


def is_accelerated(module: nn.Module, kind: type[Accelerated] = Accelerated) -> bool:
    """Whether its class is one of :func:`accelerated_class`, and not one that others derived."""
    cls = type(module)
    return issubclass(cls, kind) and cls._accelerated_class is cls


def original(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had."""
    if is_accelerated(module):
        return cast(Accelerated, module)._accelerated.original
    return type(module)


def is_sequential(kind: type[nn.Module]) -> bool:
    """Whether modules of the class call their children one by one. Those of TorchScript have no
    forward to ask."""
    return getattr(kind, "forward", None) is nn.Sequential.forward


def takes(x: object) -> bool:
    """Whether x is what operators are for; for all else the modules run as they were.

    They do so too where programs are recorded for others: those need nothing but PyTorch then.
    """
    return (
        type(x) in (Tensor, nn.Parameter)
        and isinstance(x, Tensor)
        and x.dim() == 4
        and x.dtype in DTYPES
        and not torch.jit.is_tracing()
        and not torch.compiler.is_exporting()
        and not (_HAS_AMX and _is_16_bit(x))
    )


def _is_16_bit(x: Tensor) -> bool:
    device = x.device.type
    if device != "cpu":
        return False
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) in _16_BIT
    return x.dtype in _16_BIT


def serves(op: str, x: Tensor) -> bool:
    """Whether a kernel is to compute ``op`` on x."""
    return takes(x) and has_kernel(op, x)
