"""CMake targets that tests and tools build for themselves, under ``build/``."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What cmake/cuda.cmake builds the CUDA kernels for with nvcc >= 12.8.
ARCHITECTURES = "8.0;8.6;8.9;9.0a;10.0+PTX;12.0+PTX"


def tool(name: str) -> str | None:
    """The program of the package of that name, else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def missing() -> str | None:
    """What this machine lacks for any build, if anything."""
    found = {
        "cmake": tool("cmake"),
        "ninja": tool("ninja"),
        "a C++ compiler": os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++"),
    }
    return ", ".join(name for name, what in found.items() if not what) or None


def build(folder: str, target: str, source: str = "", **environment: str) -> Path:
    """Build a target, or one source of it, as far as sources are newer. Raises with the compiler's
    messages."""
    from torch.utils import cpp_extension

    settings = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CLSD_TORCH_INCLUDE": cpp_extension.include_paths()[0],
        "CLSD_TORCH_LIB": cpp_extension.library_paths()[0],
        "CLSD_FAST_CUDA": "on" if target == "_C_cuda" else "off",
    }
    cmake, path = tool("cmake"), ROOT / "build" / folder
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that share the tests build once
        _run([cmake, "-S", ROOT, "-B", path, "-G", "Ninja", *definitions], environment)
        made = f"CMakeFiles/{target}.dir/{source}.o" if source else target
        _run([cmake, "--build", path, "--target", made], environment)
    return path / (made if source else f"{target}.so")


def missing_for_cuda() -> str | None:
    """What this machine lacks to build the CUDA kernels, if anything."""
    lacking = [missing(), None if os.environ.get("CUDACXX") or shutil.which("nvcc") else "nvcc"]
    return ", ".join(filter(None, lacking)) or None


def build_cuda() -> Path:
    """_C_cuda for all architectures."""
    return build("cuda", "_C_cuda", TORCH_CUDA_ARCH_LIST=ARCHITECTURES)


def build_emulation() -> Path:
    """The CUDA operators on CPU tensors."""
    return build("cuda_emulation", "_emulated")


def _run(command: list, environment: dict[str, str]) -> None:
    environment = {**os.environ, **environment}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        output = (result.stdout + result.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(map(str, command))}\n{output}")
