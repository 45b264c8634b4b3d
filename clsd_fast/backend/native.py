"""Loads the native operator libraries and remembers why one is missing, if it is."""

from pathlib import Path

import torch

from .._library import NAMESPACE, SCHEMAS
from .._torch import has_kernel_for_key

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARY = PACKAGE / "_C.so"
CUDA_LIBRARY = PACKAGE / "_C_cuda.so"

#: Device types that the loaded libraries have kernels for.
devices: frozenset[str] = frozenset()
#: Why there are no native CPU kernels; None if they are loaded.
missing: str | None = None
#: Why there are no native CUDA kernels; None if they are loaded.
cuda_missing: str | None = None
#: Operators that the CUDA library serves, forward and backward.
cuda_operators: frozenset[str] = frozenset()


def load() -> None:
    """Load the libraries of this package. One that is missing or unloadable is recorded."""
    global devices, missing, cuda_missing, cuda_operators
    missing = _load(LIBRARY)
    # Asked of the build, not of the driver: that would start CUDA in every process that imports
    # this package, and forked workers could not use it.
    if torch.version.cuda is None:
        cuda_missing = "this PyTorch is built without CUDA"
    else:
        cuda_missing = _load(CUDA_LIBRARY)
    # Nothing else has registered kernels for CUDA tensors before this.
    cuda_operators = frozenset() if cuda_missing else frozenset(filter(_is_on_cuda, SCHEMAS))
    loaded = {"cpu": missing is None, "cuda": bool(cuda_operators)}
    devices = frozenset(device for device, is_loaded in loaded.items() if is_loaded)


def _load(library: Path) -> str | None:
    if not library.exists():
        return f"{library.name} was not built for this installation"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        # PyTorch's own sentence names the file alone.
        return f"{library.name} does not load: {error.__cause__ or error}"
    return None


def _is_on_cuda(op: str) -> bool:
    names = (op, f"{op}_backward")
    return all(
        name in SCHEMAS and has_kernel_for_key(f"{NAMESPACE}::{name}", "CUDA") for name in names
    )
