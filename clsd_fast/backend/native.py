"""Loads the native operator libraries and remembers why one is missing, if it is.

The CPU library's kernels are those of the operators themselves. The CUDA library's are operators of
their own, of the same names and schemas in CUDA_NAMESPACE: which calls they serve is decided above
them.
"""

import ctypes
import sys
import warnings
from pathlib import Path

import torch

from .._library import SCHEMAS
from .._torch import constant_when_traced, has_kernel_for_key
from ._choices import of_environment

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARY = PACKAGE / "_C.so"
CUDA_LIBRARY = PACKAGE / "_C_cuda.so"
CUDA_NAMESPACE = "clsd_fast_cuda"

#: What the CPU library, which reads the variable itself, may convolve by.
convolutions = of_environment("CLSD_FAST_CONV", "auto", "direct")

#: Device types that the loaded libraries have kernels for.
devices: frozenset[str] = frozenset()
#: Why there are no native CPU kernels; None if they are loaded.
missing: str | None = None
#: Why there are no native CUDA kernels; None if they are loaded.
cuda_missing: str | None = None
#: Operators that the CUDA library serves, forward and backward.
cuda_operators: frozenset[str] = frozenset()

#: Why the CUDA library does not run on a GPU, by its index; None where it does.
_reasons: dict[int, str | None] = {}

_cuda_schemas = torch.library.Library(CUDA_NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    _cuda_schemas.define(_name + _schema)


def load() -> None:
    """Load the libraries of this package. One that is missing or unloadable is recorded."""
    global devices, missing, cuda_missing, cuda_operators
    missing = _load(LIBRARY)
    if missing:
        _warn_of_shadowing()
    # Asked of the build, not of the driver: that would start CUDA in every process that imports
    # this package, and forked workers could not use it.
    if torch.version.cuda is None:
        cuda_missing = "this PyTorch is built without CUDA"
    else:
        cuda_missing = _load(CUDA_LIBRARY)
    cuda_operators = frozenset() if cuda_missing else operators_for("CUDA")
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


def _warn_of_shadowing() -> None:
    """Where Python has found a checkout's sources before an installation: most often, as it was
    started there."""
    if not (PACKAGE.parent / "CMakeLists.txt").exists():
        return
    for folder in sys.path:
        installed = Path(folder).resolve() / PACKAGE.name
        if installed != PACKAGE and (installed / LIBRARY.name).exists():
            warnings.warn(
                f"clsd_fast: expected the installation {installed}, got the sources {PACKAGE} in "
                "its place, which have no native library: calls run on the reference backend; "
                "start Python in another folder",
                stacklevel=5,  # where the package is imported
            )
            return


def operators_for(key: str) -> frozenset[str]:
    """Those of CUDA_NAMESPACE with a kernel for the dispatch key, forward and backward."""
    names = {name for name in SCHEMAS if has_kernel_for_key(f"{CUDA_NAMESPACE}::{name}", key)}
    return frozenset(name for name in names if f"{name}_backward" in names)


@constant_when_traced
def why_not_on(device: int) -> str | None:
    """What the CUDA library would need to run on a GPU, and what it has; None if it runs there.

    The first question loads all its code, which a stream that is being captured could not; the
    answer no is a warning.
    """
    if device not in _reasons:
        with torch.cuda.device(device):
            reason = _ask_cuda_library()
        _reasons[device] = reason
        if reason:
            warnings.warn(
                f"clsd_fast: expected {reason}; cuda:{device} is served without native kernels",
                stacklevel=2,
            )
    return _reasons[device]


def _ask_cuda_library() -> str | None:
    ask = ctypes.CDLL(str(CUDA_LIBRARY)).clsd_cuda_why_not
    ask.restype = ctypes.c_char_p
    return ask().decode() or None
