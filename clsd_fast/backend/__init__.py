"""Which implementation serves a call.

A public function asks once: plain PyTorch it calls itself, differentiable to any order, everything
else through the operator. For CUDA tensors an operator asks again, because compiled programs,
backwards and callers of ``torch.ops`` come without the public function.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Proxy

from .._library import NAMESPACE, SCHEMAS, references
from .._torch import is_transformed
from . import cuda, native, triton
from ._choices import of_environment, one_of

BACKENDS = ("auto", "native", "triton", "reference")

_current = of_environment("CLSD_FAST_BACKEND", *BACKENDS)


class use_backend:  # noqa: N801 - used like torch.no_grad
    """Choose the backend of all following calls, or of a ``with`` block.

    Args:
        name: ``"auto"`` takes native kernels where this installation has them for the tensors'
            device, else Triton kernels (but not for convolutions of float64 images, nor of float32
            ones unless ``torch.set_float32_matmul_precision`` allows TF32), else plain PyTorch;
            ``"native"`` and ``"triton"`` raise where there are none of that kind;
            ``"reference"`` is plain PyTorch, differentiable to any order.

    Whatever the choice, plain PyTorch serves what no kernel could differentiate: calls below the
    transforms of ``torch.func`` (``grad``, ``jvp``, ``vmap``, ...), calls inside
    ``torch.autograd.forward_ad.dual_level``, and calls with a tensor where kernels take a number
    (``res_scale``, ``eps``). It also is what ``torch.jit.trace`` and ``torch.onnx.export`` record;
    programs of ``torch.export`` have the operators, but for ``"reference"``.

    The initial value is that of the environment variable ``CLSD_FAST_BACKEND``, else ``auto``.
    The choice is one for the process, as with ``torch.backends``: it is not thread-local.

    Raises:
        ValueError: for any other name.
    """

    def __init__(self, name: str) -> None:
        global _current
        name = one_of(name, "use_backend", *BACKENDS)
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


def is_recorded(x: object) -> bool:
    """Whether a call with x becomes part of a program that is to need nothing but PyTorch."""
    if torch.jit.is_tracing() or isinstance(x, Proxy):
        return True
    # The exporter of ONNX goes by way of ``torch.export``, which by itself keeps operators.
    is_exported = torch.compiler.is_exporting()
    return is_exported and (_current == "reference" or torch.onnx.is_in_onnx_export())


def uses_kernel(
    op: str, tensor: Tensor, *weights: Tensor, upscale_factor: int = 1, number: object = None
) -> bool:
    """Whether ``op`` on ``tensor`` goes to a kernel of this package, not to plain PyTorch.

    Args:
        number: what kernels take as a number: of a tensor, only PyTorch has the gradient.

    Raises:
        RuntimeError: if the chosen backend has no such kernel.
    """
    if isinstance(number, Tensor):
        return False
    return implementation(op, tensor, *weights, upscale_factor=upscale_factor) != "reference"


def _is_plain(tensor: Tensor) -> bool:
    """Whether a call is plain PyTorch whatever the backend is."""
    return is_transformed() or is_recorded(tensor)


def has_kernel(op: str, tensor: Tensor, *weights: Tensor) -> bool:
    """Whether the chosen backend has a kernel for ``op`` on ``tensor``'s device, and for these
    weights: for callers that have another way if not, so that nothing raises."""
    if _is_plain(tensor):
        return False
    names = _WHY_NOT if _current == "auto" else {_current} & _WHY_NOT.keys()
    return any(_WHY_NOT[name](op, tensor, weights, 1) is None for name in names)


def implementation(op: str, tensor: Tensor, *weights: Tensor, upscale_factor: int = 1) -> str:
    """Which backend serves ``op`` on ``tensor``: native, triton or reference.

    With the weights of a convolution, or a tail's last one, the answer is for their shapes and
    ``tensor``'s dtype; kernels do not serve all.

    Raises:
        RuntimeError: if the chosen backend cannot.
    """
    if _is_plain(tensor):
        return "reference"
    call = (op, tensor, weights, upscale_factor)
    if _current == "auto":
        for name, why_not in _WHY_NOT.items():
            if why_not(*call) is None:
                return name
        return "reference"
    reason = None if _current == "reference" else _WHY_NOT[_current](*call)
    if reason is not None:
        raise RuntimeError(f"{op}: expected {reason}")
    return _current


def _why_not_native(
    op: str, tensor: Tensor, weights: tuple[Tensor, ...], upscale_factor: int
) -> str | None:
    device = tensor.device.type
    if device in native.devices:
        return cuda.why_not(op, tensor, weights, upscale_factor) if device == "cuda" else None
    missing = {"cpu": native.missing, "cuda": native.cuda_missing}.get(device)
    reason = f" ({missing})" if missing else ""
    return f"a native kernel for {device} tensors, got none in this installation{reason}"


def _why_not_triton(
    op: str, tensor: Tensor, weights: tuple[Tensor, ...], upscale_factor: int
) -> str | None:
    device = tensor.device.type
    if op not in triton.OPERATORS:
        return f"an operator with a Triton kernel ({', '.join(triton.OPERATORS)}), got {op}"
    if triton.missing is None and device not in triton.devices:
        return f"{' or '.join(triton.devices)} tensors for its Triton kernel, got {device}"
    if missing := triton.why_not():
        return f"a Triton kernel for {device} tensors, got none ({missing})"
    return triton.why_not_by_default(op, tensor, weights) if _current == "auto" else None


#: In the order of preference: why a backend does not serve a call, or None.
_WHY_NOT: dict[str, Callable[..., str | None]] = {
    "native": _why_not_native,
    "triton": _why_not_triton,
}


#: Of convolutions, and of tails their last ones'; each a tensor or a list of them.
_WEIGHTS = (
    *("weight", "weight1", "weight2", "out_weight"),
    *("weights", "weights1", "weights2", "out_weights"),
)


class _Subject(NamedTuple):
    """Where an operator's arguments have what its implementation is chosen by."""

    tensor: int
    weights: tuple[int, ...]
    upscale_factor: int | None

    def choice(self, op: str, args: tuple[Any, ...]) -> str:
        factor = 1 if self.upscale_factor is None else args[self.upscale_factor]
        given = (args[index] for index in self.weights)
        lists = (item if isinstance(item, list) else [item] for item in given)
        weights = (weight for weights in lists for weight in weights)
        tensor = args[self.tensor]
        first = tensor[0] if isinstance(tensor, list) else tensor
        return implementation(op, first, *weights, upscale_factor=factor)


def _subject(name: str) -> _Subject:
    arguments = getattr(getattr(torch.ops, NAMESPACE), name).default._schema.arguments
    at = {argument.name: index for index, argument in enumerate(arguments)}
    weights = tuple(index for name, index in at.items() if name in _WEIGHTS)
    return _Subject(at.get("x", at.get("xs", 0)), weights, at.get("upscale_factor"))


def _chosen_per_call(name: str) -> Callable:
    op, subject = name.removesuffix("_backward"), _subject(name)
    kernels = {
        "native": getattr(getattr(torch.ops, native.CUDA_NAMESPACE), name).default,
        "triton": partial(triton.call, name),
        "reference": references[name],
    }

    def call(*args: Any) -> Any:
        return kernels[subject.choice(op, args)](*args)

    return call


def register(library: torch.library.Library, key: str, **options: Any) -> None:
    """Let every operator choose among the native CUDA kernels, Triton's and plain PyTorch, for
    each call with tensors of a dispatch key."""
    for name in SCHEMAS:
        library.impl(name, _chosen_per_call(name), key, **options)


_library = torch.library.Library(NAMESPACE, "IMPL")


def load() -> None:
    """Load what this installation has. After ``clsd_fast.ops`` has registered the references."""
    native.load()
    triton.load()
    register(_library, "CUDA")
