"""Hands the native build over to CMake and Ninja; CMakeLists.txt is the build description.

Environment:
    CLSD_FAST_NATIVE    on (default) | off: off installs plain Python, on the reference backend
    CLSD_FAST_CUDA      auto (default) | on | off: CUDA kernels; auto where there is an nvcc
    TORCH_CUDA_ARCH_LIST  for which GPUs, like "8.0;9.0a"; the default is in cmake/cuda.cmake
    CLSD_FAST_SANITIZE  off (default) | on: with AddressSanitizer and UBSan, for `make sanitize`
    CLSD_FAST_BUILD     folder in which wheels are built and which is kept, so that the next one
                        compiles what has changed; the default is a temporary one
    MAX_JOBS            compile jobs; the default follows cores and free memory
"""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
GIB_PER_JOB = 1.5


def switch(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(name, default).lower()
    if value not in choices:
        raise SystemExit(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def version() -> str:
    source = (ROOT / "clsd_fast" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


def jobs() -> int:
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError):
        return cores
    return max(1, min(cores, int(free / (GIB_PER_JOB * 2**30))))


def tool(name: str) -> str:
    """The program of the package of that name, else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"setup.py: expected {name} (pip install {name}), got none")
    return found


def module(name: str, requirement: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        wanted = f"{name.partition('.')[0]} (pip install {requirement!r})"
        raise SystemExit(f"setup.py: expected {wanted}, got none: {error}") from None


def folders() -> dict[str, dict[str, str]]:
    """Where commands work. Wheels are built outside of the sources, and so is what pip asks for
    them; in place, ``build/`` keeps what is compiled."""
    if not {"bdist_wheel", "dist_info", "egg_info"} & set(sys.argv):
        return {}
    scratch = tempfile.mkdtemp(prefix="clsd-fast-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    build = os.environ.get("CLSD_FAST_BUILD", scratch)
    return {"build": {"build_base": build}, "egg_info": {"egg_base": scratch}}


class CMakeBuild(build_ext):
    """Build every native library once and lay them into the packages."""

    def run(self) -> None:
        pybind11 = module("pybind11", "pybind11>=2.13")
        cpp_extension = module("torch.utils.cpp_extension", "torch>=2.10")
        build = Path(self.build_temp).resolve()
        (build / "_C_cuda.so").unlink(
            missing_ok=True
        )  # a build without it must not leave an old one
        settings = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "CMAKE_BUILD_TYPE": "Release",
            "CLSD_TORCH_INCLUDE": cpp_extension.include_paths()[0],
            "CLSD_TORCH_LIB": cpp_extension.library_paths()[0],
            "CLSD_FAST_CUDA": switch("CLSD_FAST_CUDA", "auto", ("auto", "on", "off")),
            "CLSD_FAST_SANITIZE": switch("CLSD_FAST_SANITIZE", "off", ("on", "off")),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        cmake = tool("cmake")
        definitions = [f"-D{name}={value}" for name, value in settings.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *definitions], check=True)
        subprocess.run([cmake, "--build", build, "-j", str(jobs())], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if (build / target.name).exists() or not extension.optional:
                shutil.copy2(build / target.name, target)

    def get_ext_filename(self, fullname: str) -> str:
        # These belong to no Python version: they are loaded by torch, not imported.
        if fullname.split(".")[-1] in ("_C", "_C_cuda"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


native = switch("CLSD_FAST_NATIVE", "on", ("on", "off")) == "on"
extensions = [
    Extension("clsd_fast._C", []),
    Extension("clsd_fast._C_cuda", [], optional=True),
    Extension("clsd_train._host", []),
]
setup(
    version=version(),
    packages=[
        *find_packages(include=["clsd_fast", "clsd_fast.*"]),
        *find_packages("python", include=["clsd_train"]),
    ],
    package_dir={"clsd_train": "python/clsd_train"},
    package_data={"clsd_fast": ["py.typed"], "clsd_train": ["presets/*.yaml", "studies/*.yaml"]},
    ext_modules=extensions if native else [],
    cmdclass={"build_ext": CMakeBuild},
    options=folders(),
)
