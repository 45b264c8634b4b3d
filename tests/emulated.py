"""The CUDA operators on CPU tensors: the library of their emulated kernels, built on demand."""

import ctypes
import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from tolerance import assert_close
from torch import Tensor

from clsd_fast import reference
from clsd_fast._library import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda_emulation"
NAMESPACE = "clsd_fast_emulated"
#: Operators of the emulation's own tests.
EXTRA_SCHEMAS = {
    "planted": "(Tensor x, str fault) -> Tensor",
    "wgmma_product": "(Tensor a, Tensor b, bool transposed, bool proxy_fence, bool fence, "
    "bool wait) -> Tensor",
}


class Emulation:
    """The loaded library: ``ops`` has its operators, the methods steer the launches."""

    def __init__(self, path: Path) -> None:
        self._library = torch.library.Library(NAMESPACE, "DEF")
        for name, schema in (SCHEMAS | EXTRA_SCHEMAS).items():
            self._library.define(name + schema)
        torch.ops.load_library(path)
        self.ops = getattr(torch.ops, NAMESPACE)
        functions = ctypes.CDLL(str(path))
        functions.clsd_emulation_seed.argtypes = [ctypes.c_uint64]
        #: Seed of the order of warps and lanes, and of which copies are late.
        self.seed = functions.clsd_emulation_seed
        #: Let every thread skip its i-th barrier of a block, or wait for copies; -1: none.
        self.skip_barrier = functions.clsd_emulation_skip_barrier
        self.skip_wait = functions.clsd_emulation_skip_wait

    def reset(self) -> None:
        self.seed(0)
        self.skip_barrier(-1)
        self.skip_wait(-1)


def tool(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def missing() -> str | None:
    """What this machine lacks to build the emulation, if anything."""
    tools = {name: tool(name) for name in ("cmake", "ninja")}
    tools["a C++ compiler"] = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    lacking = [name for name, found in tools.items() if not found]
    return ", ".join(lacking + ([] if find_spec("pybind11") else ["pybind11"])) or None


def build() -> Path:
    """Build the library as far as its sources are newer. Raises with the compiler's messages."""
    import pybind11
    from torch.utils import cpp_extension

    settings = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CLSD_TORCH_INCLUDE": cpp_extension.include_paths()[0],
        "CLSD_TORCH_LIB": cpp_extension.library_paths()[0],
        "CLSD_FAST_CUDA": "off",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    cmake = tool("cmake")
    _run(cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *definitions)
    _run(cmake, "--build", BUILD, "--target", "_emulated")
    return BUILD / "_emulated.so"


def _run(*command: object) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        output = (result.stdout + result.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(map(str, command))}\n{output}")


def reference_of(op: str):
    """The operator of that name in plain PyTorch, with the operator's own arguments."""
    if op == "residual_block":
        return import_module("clsd_fast.ops.residual_block")._reference
    return getattr(reference, op)


def formats(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it is contiguous, and channels_last: one pixel is both, and so is an empty tensor."""
    if tensor.numel() == 0:
        return True, True
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous(), channels_last


def check(emulation: Emulation, op: str, *args: object) -> list[Tensor]:
    """Hold an operator's outputs for 16-bit tensors to the tolerance rule, and return them."""

    def outputs(function, arguments):
        result = function(*arguments)
        return [result] if isinstance(result, Tensor) else list(result)

    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    ours = outputs(getattr(emulation.ops, op), args)
    for argument, copy in zip(args, before, strict=True):
        assert not isinstance(copy, Tensor) or torch.equal(argument, copy), "an input was written"
    doubles = [a.double() if isinstance(a, Tensor) else a for a in args]
    exact = outputs(reference_of(op), doubles)
    theirs = outputs(reference_of(op), args)
    for i, result in enumerate(zip(ours, exact, theirs, strict=True)):
        assert_close(*result, f"{op}, output {i}")
        assert formats(ours[i]) == formats(theirs[i]), f"{op}, output {i}: memory format"
    return ours
