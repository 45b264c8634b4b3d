"""Puts the Triton kernels on CUDA tensors and remembers why they are missing, if they are.

ROCm builds of PyTorch name their devices and their dispatch key CUDA, too.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch

from .._library import NAMESPACE

#: Operators with Triton kernels, each in the module ``clsd_fast.triton.<op>``.
OPERATORS = ("upsample_tail", "pairwise_similarity", "info_nce", "distance_ratio_loss")
#: Device types that the registered kernels serve.
devices: frozenset[str] = frozenset()
#: Why there are no Triton kernels; None if they are registered.
missing: str | None = None

_library = torch.library.Library(NAMESPACE, "IMPL")


def load() -> None:
    """Register every kernel if Triton is installed. It is imported at a kernel's first call."""
    global devices, missing
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # or a folder on the path that has the name
        missing = "Triton is not installed"
        return
    register(_library, "CUDA")
    devices, missing = frozenset({"cuda"}), None


def register(library: torch.library.Library, key: str, **options: object) -> None:
    """Register every operator's Triton functions for a dispatch key."""
    for op in OPERATORS:
        for name in (op, f"{op}_backward"):
            library.impl(name, _imported_at_call(op, name), key, **options)


def _imported_at_call(op: str, name: str) -> Callable:
    def call(*args: object) -> object:
        return getattr(import_module(f"clsd_fast.triton.{op}"), name)(*args)

    return call
