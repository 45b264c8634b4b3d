"""``python -m clsd_fast.env``: what this installation can do, for bug reports."""

import platform
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

import torch

from . import __version__
from .backend import current_backend, native, triton


def report() -> dict[str, str]:
    """Versions, the state of the native library and the backend in use, by name."""
    return {
        "clsd_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "native CPU kernels": _native_state(native.LIBRARY, native.missing, "CPU calls run"),
        "CPU convolutions": native.convolutions,
        "native CUDA kernels": _cuda_state(),
        "Triton kernels": _triton_state(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "backend": current_backend(),
    }


def _native_state(library: Path, missing: str | None, calls: str) -> str:
    if missing is None:
        return f"loaded from {library}"
    return f"missing: {missing}; {calls} on the reference backend"


def _cuda_state() -> str:
    state = _native_state(native.CUDA_LIBRARY, native.cuda_missing, "convolutions on GPUs run")
    if native.cuda_missing is not None:
        return state
    return f"{state}, for {', '.join(sorted(native.cuda_operators))}"


def _triton_state() -> str:
    if triton.missing is not None:
        return f"missing: {triton.missing}; GPU calls run on the reference backend"
    try:
        version = _triton_version()
    except ImportError as error:
        return f"do not import: {error}"
    return f"Triton {version}, on GPUs, for {', '.join(triton.OPERATORS)}"


def _triton_version() -> str:
    if not torch.cuda.is_available():  # nothing would run, and importing it takes a while
        with suppress(metadata.PackageNotFoundError):  # it has other names in other builds
            return metadata.version("triton")
    return str(import_module("triton").__version__)


def main() -> None:
    for name, value in report().items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
