"""Calls the Triton kernels, and remembers why they are missing, if they are.

ROCm builds of PyTorch name their devices CUDA, too.
"""

from importlib import import_module
from importlib.util import find_spec

#: Operators with Triton kernels, each in the module ``clsd_fast.triton.<op>``.
OPERATORS = ("upsample_tail", "pairwise_similarity", "info_nce", "distance_ratio_loss")
#: Device types that the kernels serve.
devices: frozenset[str] = frozenset()
#: Why there are no Triton kernels; None if there are.
missing: str | None = None


def load() -> None:
    """Look whether Triton is installed. It is imported at a kernel's first call."""
    global devices, missing
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # or a folder on the path that has the name
        missing = "Triton is not installed"
        return
    devices, missing = frozenset({"cuda"}), None


def call(name: str, *args: object) -> object:
    """The Triton function of an operator or of its backward."""
    module = import_module(f"clsd_fast.triton.{name.removesuffix('_backward')}")
    return getattr(module, name)(*args)
