"""Calls the Triton kernels, and remembers why they are missing, if they are.

ROCm builds of PyTorch name their devices CUDA, too.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from .._torch import constant_when_traced
from . import cuda

CONVOLUTIONS = (
    *("conv3x3", "conv3x3s", "residual_block", "residual_blocks"),
    "pixel_shuffle_upsample",
)
#: Operators with Triton kernels, each in the module ``clsd_fast.triton.<op>``.
OPERATORS = (
    *CONVOLUTIONS,
    *("upsample_tail", "upsample_tails", "pairwise_similarity", "info_nce", "distance_ratio_loss"),
)
#: Device types that the kernels serve.
devices: frozenset[str] = frozenset()
#: Why there are no Triton kernels; None if there are.
missing: str | None = None

_has_started = False


def load() -> None:
    """Look whether Triton is installed. It is imported when it is first to serve a call."""
    global devices, missing, _has_started
    _has_started = False
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # or a folder on the path that has the name
        missing = "Triton is not installed"
        return
    devices, missing = frozenset({"cuda"}), None


@constant_when_traced
def why_not() -> str | None:
    """Why there are no Triton kernels, None if there are.

    The first question imports Triton, and has it find a compiler and a driver; that it does not is
    a warning.
    """
    global missing, _has_started
    if missing is None and not _has_started:
        _has_started = True
        missing = _start()
        if missing:
            warnings.warn(
                f"clsd_fast: expected Triton to run, got {missing}; GPUs are served without it",
                stacklevel=2,
            )
    return missing


def _start() -> str | None:
    try:
        triton = import_module("triton")
        if "cuda" in devices:  # not interpreted, on a CPU
            triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def why_not_by_default(op: str, x: Tensor, weights: tuple[Tensor, ...]) -> str | None:
    """What a call would need for Triton to be preferred to PyTorch; None if it is.

    Args:
        op: name of an operator that there are kernels of.
        x: on a device that they serve.
        weights: of the call's convolutions; without any, the answer is for the operator at large.
    """
    if op not in CONVOLUTIONS or not weights:
        return None
    if x.dtype not in cuda.DTYPES and not _may_be_tf32(x):
        # Exact products have no tensor cores; cuDNN's of float32 are TF32 unless one says no.
        got = str(x.dtype).removeprefix("torch.")
        return f"x of 16 bits, or of float32 whose products may be TF32, got {got}"
    if x.device.type == "cuda" and torch.version.hip is None:
        return cuda.why_not_capable(x)
    return None


def _may_be_tf32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"


def call(name: str, *args: object) -> object:
    """The Triton function of an operator or of its backward."""
    module = import_module(f"clsd_fast.triton.{name.removesuffix('_backward')}")
    return getattr(module, name)(*args)
