"""What the public functions share: argument checks, autocast, reductions."""

from contextlib import nullcontext

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check(condition: bool, op: str, expected: str, got: object) -> None:
    """Raise ``ValueError("<op>: expected <expected>, got <got>")`` unless condition."""
    if not condition:
        raise ValueError(f"{op}: expected {expected}, got {got}")


def check_images(op: str, name: str, x: Tensor) -> None:
    """x is a floating-point batch [N, C, H, W]; N may be 0."""
    check(
        x.dim() == 4 and all(size >= 1 for size in x.shape[1:]),
        op,
        f"{name} of shape [N, C, H, W] with C, H, W >= 1",
        list(x.shape),
    )
    _check_dtype(op, name, x)


def check_rows(op: str, name: str, rows: Tensor, features: int | None = None) -> None:
    """rows is a floating-point [..., N, D] with D >= 1, or D == features if given."""
    good = rows.dim() >= 2 and rows.shape[-1] >= 1
    last = "D" if features is None else str(features)
    check(
        good and features in (None, rows.shape[-1]),
        op,
        f"{name} of shape [..., rows, {last}]",
        list(rows.shape),
    )
    _check_dtype(op, name, rows)


def _check_dtype(op: str, name: str, x: Tensor) -> None:
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    dtype = str(x.dtype).removeprefix("torch.")
    check(x.dtype in DTYPES, op, f"{name} of dtype {names}", dtype)


def check_like(op: str, x: Tensor, **others: Tensor | None) -> None:
    """The others have x's dtype and device."""
    dtype = str(x.dtype).removeprefix("torch.")
    for name, other in others.items():
        if other is not None:
            got = str(other.dtype).removeprefix("torch.")
            check(other.dtype == x.dtype, op, f"{name} of dtype {dtype}", got)
            check(other.device == x.device, op, f"{name} on {x.device}", other.device)


def check_shape(op: str, name: str, tensor: Tensor | None, shape: list[int]) -> None:
    if tensor is not None:
        check(list(tensor.shape) == shape, op, f"{name} of shape {shape}", list(tensor.shape))


def check_conv(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, suffix: str = "") -> None:
    """weight is [K, C, 3, 3] for x's C, bias is [K]."""
    channels = x.shape[1]
    check(
        weight.dim() == 4 and weight.shape[0] >= 1 and list(weight.shape[1:]) == [channels, 3, 3],
        op,
        f"weight{suffix} of shape [K, {channels}, 3, 3]",
        list(weight.shape),
    )
    check_shape(op, f"bias{suffix}", bias, [weight.shape[0]])
    check_like(op, x, **{f"weight{suffix}": weight, f"bias{suffix}": bias})


def cast(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast wants them: in ``dtype``, or in autocast's own if None.

    As PyTorch's own autocast does, this leaves float64 and integers alone.
    """
    if not _autocasts(tensors[0]):
        return tensors
    target = torch.get_autocast_dtype(tensors[0].device.type) if dtype is None else dtype
    return tuple(
        tensor.to(target)
        if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )


def without_autocast(x: Tensor):
    """A context in which plain PyTorch keeps the dtypes that `cast` chose."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def _autocasts(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def batch_rows(lead: torch.Size, rows: Tensor) -> Tensor:
    """rows [..., N, D] broadcast to [*lead, N, D] and flattened to [B, N, D]."""
    return rows.expand(*lead, *rows.shape[-2:]).reshape(lead.numel(), *rows.shape[-2:])


def broadcast_lead(op: str, **tensors: Tensor | None) -> torch.Size:
    """The common leading (batch) dimensions of [..., N, D] tensors."""
    shapes = {name: rows.shape[:-2] for name, rows in tensors.items() if rows is not None}
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{op}: expected leading dimensions that broadcast, got {got}") from None


def check_reduction(op: str, reduction: str) -> None:
    check(reduction in ("none", "mean", "sum"), op, "reduction none, mean or sum", reduction)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def given(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients that were asked for; None for the operators' empty placeholders."""
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]
