"""Which implementation serves a call."""

import os

from torch import Tensor

from . import _native

BACKENDS = ("auto", "native", "reference")


def _validated(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_current = _validated(os.environ.get("CLSD_FAST_BACKEND", "auto"), "CLSD_FAST_BACKEND")


class use_backend:  # noqa: N801 - used like torch.no_grad
    """Choose the backend of all following calls, or of a ``with`` block.

    Args:
        name: ``"auto"`` takes the native kernels where this installation has them for the
            tensors' device, else plain PyTorch; ``"native"`` raises where there are none;
            ``"reference"`` is plain PyTorch, differentiable to any order.

    The initial value is that of the environment variable ``CLSD_FAST_BACKEND``, else ``auto``.
    The choice is one for the process, as with ``torch.backends``: it is not thread-local.

    Raises:
        ValueError: for any other name.
    """

    def __init__(self, name: str) -> None:
        global _current
        name = _validated(name, "use_backend")
        self._previous = _current
        _current = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        global _current
        _current = self._previous


def current_backend() -> str:
    """The name given to :class:`use_backend` last."""
    return _current


def runs_native(op: str, tensor: Tensor) -> bool:
    """Whether ``op`` on ``tensor`` goes to a native kernel.

    Raises:
        RuntimeError: if the backend is ``"native"`` and there is no such kernel.
    """
    if _current == "reference":
        return False
    available = tensor.device.type in _native.devices
    if not available and _current == "native":
        reason = f" ({_native.missing})" if tensor.device.type == "cpu" else ""
        raise RuntimeError(
            f"{op}: expected a native kernel for {tensor.device.type} tensors, "
            f"got none in this installation{reason}"
        )
    return available
