"""What the public functions share: argument checks, autocast, reductions."""

import operator
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .._torch import autocasts_any

# Those of exporters, too, which no checker knows for numbers.
INTEGERS: Any = (int, torch.SymInt)
NUMBERS: Any = (float, torch.SymFloat, *INTEGERS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def fail(op: str, expected: str, got: object) -> NoReturn:
    """Raise ``ValueError("<op>: expected <expected>, got <got>")``.

    Callers test first: composing the sentence takes longer than a small operator.
    """
    raise ValueError(f"{op}: expected {expected}, got {got}")


def check_tensor(op: str, name: str, x: object) -> None:
    """x is a tensor, of which every element lies in memory."""
    if not isinstance(x, Tensor):
        fail(op, f"{name} a tensor", type(x).__name__)
    if x.layout is not torch.strided or x.is_nested:
        layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        fail(op, f"{name} of layout strided", layout)


def check_list(op: str, name: str, values: object, of: str = "tensors") -> None:
    """values is a list, or what is like one."""
    if isinstance(values, Tensor) or not hasattr(values, "__len__"):
        fail(op, f"{name} a list of {of}", type(values).__name__)


def check_images(op: str, name: str, x: Tensor) -> None:
    """x is a floating-point batch [N, C, H, W]; N may be 0."""
    check_tensor(op, name, x)
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        fail(op, f"{name} of shape [N, C, H, W] with C, H, W >= 1", list(x.shape))
    _check_dtype(op, name, x)


def check_rows(op: str, name: str, rows: Tensor, features: int | None = None) -> None:
    """rows is a floating-point [..., N, D] with D >= 1, or D == features if given."""
    shape = rows.shape
    if len(shape) < 2 or shape[-1] < 1 or features not in (None, shape[-1]):
        last = "D" if features is None else str(features)
        fail(op, f"{name} of shape [..., rows, {last}]", list(shape))
    _check_dtype(op, name, rows)


def _check_dtype(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        names = ", ".join(map(dtype_name, DTYPES))
        fail(op, f"{name} of dtype {names}", dtype_name(x.dtype))


def check_like(op: str, x: Tensor, **others: Tensor | None) -> None:
    """The others have x's dtype and device."""
    check_type(op, x.dtype, x.device, **others)


def check_type(op: str, dtype: torch.dtype, device: torch.device, **tensors: Tensor | None) -> None:
    """The tensors have that dtype and device."""
    for name, tensor in tensors.items():
        if tensor is not None:
            if tensor.dtype != dtype:
                fail(op, f"{name} of dtype {dtype_name(dtype)}", dtype_name(tensor.dtype))
            if tensor.device != device:
                fail(op, f"{name} on {device}", tensor.device)


def check_parameters(op: str, x: Tensor, first: Tensor, **parameters: Tensor | None) -> None:
    """They have x's device, and x's dtype or, beside 16-bit x, float32: that of the first."""
    wide = x.element_size() == 2 and first.dtype == torch.float32
    dtype = first.dtype if wide else x.dtype
    if first.dtype != dtype and x.element_size() == 2:
        name = next(name for name, parameter in parameters.items() if parameter is first)
        fail(op, f"{name} of dtype {dtype_name(dtype)} or float32", dtype_name(first.dtype))
    check_type(op, dtype, x.device, **parameters)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether both have one shape, dtype and device."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_shape(op: str, name: str, tensor: Tensor | None, shape: list[int]) -> None:
    if tensor is not None:
        check_tensor(op, name, tensor)
        if list(tensor.shape) != shape:
            fail(op, f"{name} of shape {shape}", list(tensor.shape))


def check_conv(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    names: Sequence[str] = ("weight", "bias"),
) -> None:
    """weight is [K, C, 3, 3] for x's C, bias is [K]."""
    check_tensor(op, names[0], weight)
    channels, shape = x.shape[1], weight.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (channels, 3, 3):
        fail(op, f"{names[0]} of shape [K, {channels}, 3, 3]", list(shape))
    check_shape(op, names[1], bias, [shape[0]])
    check_parameters(op, x, weight, **dict(zip(names, (weight, bias), strict=True)))


def check_residual_block(
    op: str,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    names: Sequence[str] = ("weight1", "bias1", "weight2", "bias2"),
) -> None:
    """weight1 is [M, C, 3, 3] for x's C, weight2 [C, M, 3, 3], the biases are [M] and [C]."""
    check_conv(op, x, weight1, bias1, names[:2])
    channels = x.shape[1]
    check_tensor(op, names[2], weight2)
    check_shape(op, names[2], weight2, [channels, weight1.shape[0], 3, 3])
    check_shape(op, names[3], bias2, [channels])
    check_parameters(op, x, weight1, **dict(zip(names[2:], (weight2, bias2), strict=True)))


def number(op: str, name: str, value: Any) -> float | Tensor:
    """A number, or a floating-point tensor of one element, which then has no dimensions."""
    if isinstance(value, NUMBERS):
        return value
    if isinstance(value, (np.floating, np.integer)):
        return float(value)
    if not isinstance(value, Tensor):
        fail(op, f"{name} a number or a floating-point tensor of one element", type(value).__name__)
    check_tensor(op, name, value)
    if value.numel() != 1 or not value.is_floating_point():
        got = f"{dtype_name(value.dtype)} of shape {list(value.shape)}"
        fail(op, f"{name} a number or a floating-point tensor of one element", got)
    return value.reshape(())


def integer(op: str, name: str, value: Any) -> int:
    """An integer, or what is one, as NumPy's."""
    if isinstance(value, INTEGERS):
        return value
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # of a tensor of another layout
        fail(op, f"{name} an integer", type(value).__name__)


def cast(x: Tensor, *others: Tensor | None, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """The tensors as autocast wants them: in ``dtype``, or in autocast's own if None.

    As PyTorch's own autocast does, this leaves float64 and integers alone. Those that are None
    stay None: the type of each is its own, which a tuple of any length cannot say.
    """
    tensors = (x, *others)
    if not _autocasts(x):
        return tensors
    target = torch.get_autocast_dtype(x.device.type) if dtype is None else dtype
    return tuple(tensor.to(target) if _is_cast(tensor) else tensor for tensor in tensors)


def _is_cast(tensor: object) -> TypeGuard[Tensor]:
    # What is no tensor, or has no strides, is refused later.
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which plain PyTorch keeps the dtypes that `cast` chose."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def _autocasts(x: object) -> bool:
    if not autocasts_any():  # a tenth of the time of what follows
        return False
    if not isinstance(x, Tensor):
        return False  # as the checks will say
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def batch_rows(lead: torch.Size, rows: Tensor | None) -> Tensor | None:
    """rows [..., N, D] broadcast to [*lead, N, D] and flattened to [B, N, D]."""
    if rows is None or (len(lead) == 1 and rows.shape[:-2] == lead):
        return rows
    return rows.expand(*lead, *rows.shape[-2:]).reshape(lead.numel(), *rows.shape[-2:])


def broadcast_lead(op: str, **rows: Tensor | None) -> torch.Size:
    """The common leading (batch) dimensions of rows [..., N, D]."""
    leads = {name: tensor.shape[:-2] for name, tensor in rows.items() if tensor is not None}
    return broadcast_shapes(op, leads)


def broadcast_shapes(op: str, shapes: dict[str, torch.Size]) -> torch.Size:
    """``torch.broadcast_shapes`` with a sentence that names them."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{op}: expected leading dimensions that broadcast, got {got}") from None


def check_reduction(op: str, reduction: str) -> None:
    check_choice(op, "reduction", reduction, ("none", "mean", "sum"))


def check_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """value is one of the choices."""
    if not isinstance(value, str):
        fail(op, f"{name} {in_words(choices)}", type(value).__name__)
    if value not in choices:
        fail(op, f"{name} {in_words(choices)}", value)


def in_words(choices: Iterable[object]) -> str:
    """The choices as a sentence has them."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}"


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from them."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def given(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients that were asked for; None for the operators' empty placeholders."""
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]
