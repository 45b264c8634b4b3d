"""``python -m clsd_fast.env``: what this installation can do, for bug reports."""

import platform
from pathlib import Path

import torch

from . import __version__, _native, _triton
from .backend import current_backend


def report() -> dict[str, str]:
    """Versions, the state of the native library and the backend in use, by name."""
    return {
        "clsd_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "native CPU kernels": _native_state(_native.LIBRARY, _native.missing, "CPU calls run"),
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
    state = _native_state(_native.CUDA_LIBRARY, _native.cuda_missing, "convolutions on GPUs run")
    if _native.cuda_missing is not None:
        return state
    return f"{state}, for {', '.join(sorted(_native.cuda_operators))}"


def _triton_state() -> str:
    if _triton.missing is not None:
        return f"missing: {_triton.missing}; GPU calls run on the reference backend"
    try:
        import triton
    except ImportError as error:
        return f"do not import: {error}"
    return f"Triton {triton.__version__}, on GPUs, for {', '.join(_triton.OPERATORS)}"


def main() -> None:
    for name, value in report().items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
