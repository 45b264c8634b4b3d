"""What nvcc made of every CUDA kernel: registers, spills, shared memory, instructions.

    python tools/sass_report.py [--json FILE] [--library _C_cuda.so]

Without ``--library`` it builds ``_C_cuda`` for every architecture of ARCHITECTURES, which needs
nvcc and no GPU. Then it reads the library with cuobjdump, from CUDA's folder or Triton's wheel, and
prints one line a kernel and architecture:

    registers   of a thread
    stack       bytes of local memory of a thread: spilled registers, and arrays that are indexed at
                run time
    spills      bytes that the code moves from and to local memory, each LDL and STL counted once
    shared      bytes of static shared memory, with the 1024 that CUDA takes of every block from
                sm_90 on. Dynamic shared memory is not in the library: each launch asks for it
    HMMA HGMMA UTCHMMA   tensor-core instructions: mma.sync, wgmma, and tcgen05.mma of Blackwell
    loads16     instructions that load 16 bytes a thread from global memory (LDG, LDGSTS)
    TMA         instructions that load a tile of global memory (UTMALDG, UBLKCP)
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import native_build
import sass_code
from sass_code import Instruction

#: Machine code that native_build asks for, in the order of the report: sm_80, ..., sm_120.
ARCHITECTURES = tuple(
    "sm_" + item.removesuffix("+PTX").replace(".", "")
    for item in native_build.ARCHITECTURES.split(";")
)


class Kernel(NamedTuple):
    """One kernel for one architecture; see the module's text."""

    name: str
    architecture: str
    registers: int
    stack: int
    spills: int
    shared: int
    hmma: int
    hgmma: int
    utchmma: int
    loads16: int
    tma: int


HEADINGS = {"hmma": "HMMA", "hgmma": "HGMMA", "utchmma": "UTCHMMA", "tma": "TMA"}


def missing() -> str | None:
    """What this machine lacks to read a library, if anything."""
    found = {"cuobjdump": sass_code.cuobjdump(), "c++filt": shutil.which("c++filt")}
    return ", ".join(name for name, path in found.items() if path is None) or None


def build() -> Path:
    """_C_cuda for all architectures."""
    if lacking := native_build.missing_for_cuda():
        raise SystemExit(f"sass_report: expected {lacking}, got none")
    return native_build.build_cuda()


def report(library: Path) -> list[Kernel]:
    """All kernels of a library."""
    resources = sass_code.resources(sass_code.cuobjdump_of(library, "-res-usage"))
    code = sass_code.functions(sass_code.cuobjdump_of(library, "-sass"))
    symbols = sorted({symbol for _, symbol in resources})
    names = dict(zip(symbols, sass_code.demangled(symbols), strict=True))
    kernels = [
        Kernel(names[symbol], architecture, **fields, **count(code[architecture, symbol]))
        for (architecture, symbol), fields in resources.items()
    ]
    return sorted(kernels, key=lambda k: (k.name, ARCHITECTURES.index(k.architecture)))


def count(code: Iterable[Instruction]) -> dict[str, int]:
    """The counted fields of a Kernel."""
    counts = dict.fromkeys(("spills", "hmma", "hgmma", "utchmma", "loads16", "tma"), 0)
    for instruction in code:
        kind = instruction.kind
        if kind.lower() in ("hmma", "hgmma", "utchmma"):
            counts[kind.lower()] += 1
        elif kind in ("UTMALDG", "UBLKCP"):
            counts["tma"] += 1
        elif kind in ("LDL", "STL"):
            counts["spills"] += instruction.width
        elif kind in ("LDG", "LDGSTS"):
            counts["loads16"] += instruction.width == 16
    return counts


def table(kernels: Sequence[Kernel]) -> str:
    """Aligned columns; a name is written once."""
    width = max((len(kernel.name) for kernel in kernels), default=0)
    headings = [HEADINGS.get(field, field) for field in Kernel._fields[2:]]
    lines = [f"{'kernel':{width}}  arch   " + "  ".join(headings)]
    previous = None
    for kernel in kernels:
        name = "" if kernel.name == previous else kernel.name
        previous = kernel.name
        values = [
            f"{value:{len(heading)}}" for value, heading in zip(kernel[2:], headings, strict=True)
        ]
        lines.append(f"{name:{width}}  {kernel.architecture:6} " + "  ".join(values))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="a built _C_cuda.so, instead of building one")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    if lacking := missing():
        raise SystemExit(f"sass_report: expected {lacking}, got none")
    kernels = report(options.library or build())
    print(table(kernels))
    if options.json is not None:
        options.json.write_text(json.dumps([k._asdict() for k in kernels], indent=2) + "\n")


if __name__ == "__main__":
    main()
