"""Put the CUDA kernels into this checkout's clsd_fast/, so that Python run here has them.

    python tools/build_cuda.py [--library _C_cuda.so]

It installs and downloads nothing: with CMake and Ninja it builds the kernels for the GPU at hand
(or for TORCH_CUDA_ARCH_LIST; without either, for all), or it takes a library that was built
elsewhere: one fits every Python and every PyTorch from 2.10 on.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import native_build
import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "clsd_fast" / "_C_cuda.so"


def build() -> Path:
    if lacking := native_build.missing_for_cuda():
        raise SystemExit(f"build_cuda: expected {lacking}, got none")
    environment = {}
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        environment = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    return native_build.build("cuda_in_place", "_C_cuda", **environment)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="a built _C_cuda.so, instead of building one")
    library = parser.parse_args(argv).library or build()
    temporary = TARGET.with_suffix(".new")
    shutil.copy2(library, temporary)
    temporary.replace(TARGET)  # a process that has the old one loaded keeps it
    print(f"{library} is now {TARGET}")


if __name__ == "__main__":
    main()
