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
        "native CPU kernels": _native_state(
            native.LIBRARY, native.missing, "; CPU calls run on the reference backend"
        ),
        "CPU convolutions": native.convolutions,
        "native CUDA kernels": _cuda_state(),
        "Triton kernels": _triton_state(),
        "GPU convolutions": _gpu_convolutions(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "backend": current_backend(),
    }


def _native_state(library: Path, missing: str | None, consequence: str = "") -> str:
    if missing is None:
        return f"loaded from {library}"
    return f"missing: {missing}{consequence}"


def _cuda_state() -> str:
    state = _native_state(native.CUDA_LIBRARY, native.cuda_missing)
    if native.cuda_missing is not None:
        return state
    return f"{state}, for {', '.join(sorted(native.cuda_operators))}"


def _triton_state() -> str:
    missing = _triton_missing()
    if missing is not None:
        return f"missing: {missing}; GPU calls run on the reference backend"
    return f"Triton {_triton_version()}, on GPUs, for {', '.join(triton.OPERATORS)}"


def _triton_missing() -> str | None:
    # Without a GPU nothing would run, and importing it takes a while.
    return triton.why_not() if torch.cuda.is_available() else triton.missing


def _gpu_convolutions() -> str:
    """What the backend ``auto`` takes, in its order."""
    kernels = ["PyTorch"]
    if _triton_missing() is None:
        kernels.insert(0, "Triton kernels (16-bit images, and float32 ones if TF32 is allowed)")
    if native.cuda_missing is None:
        kernels.insert(0, "native CUDA kernels (16-bit images, channels that they serve)")
    return ", else ".join(kernels)


def _triton_version() -> str:
    if not torch.cuda.is_available():
        with suppress(metadata.PackageNotFoundError):  # it has other names in other builds
            return metadata.version("triton")
    return str(import_module("triton").__version__)


def main() -> None:
    for name, value in report().items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
