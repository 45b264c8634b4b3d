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
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import native_build

#: Machine code that native_build asks for, in the order of the report: sm_80, ..., sm_120.
ARCHITECTURES = tuple(
    "sm_" + item.removesuffix("+PTX").replace(".", "")
    for item in native_build.ARCHITECTURES.split(";")
)
NAMESPACE = "clsd::cuda::"

#: An instruction in cuobjdump's listing, with its predicate.
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
WIDTH = re.compile(r"\.(64|128)\b")


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

    @property
    def tensor_core_instructions(self) -> int:
        return self.hmma + self.hgmma + self.utchmma


HEADINGS = {"hmma": "HMMA", "hgmma": "HGMMA", "utchmma": "UTCHMMA", "tma": "TMA"}


def cuobjdump() -> str | None:
    """CUDA's own, which knows all that its nvcc writes, else the one in Triton's wheel."""
    if nvcc := os.environ.get("CUDACXX") or shutil.which("nvcc"):
        beside = Path(nvcc).resolve().with_name("cuobjdump")
        if beside.exists():
            return str(beside)
    if found := shutil.which("cuobjdump"):
        return found
    triton = find_spec("triton")
    if triton is None:
        return None
    wheel = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(wheel) if wheel.exists() else None


def missing() -> str | None:
    """What this machine lacks to read a library, if anything."""
    found = {"cuobjdump": cuobjdump(), "c++filt": shutil.which("c++filt")}
    return ", ".join(name for name, path in found.items() if path is None) or None


def build() -> Path:
    """_C_cuda for all architectures."""
    if lacking := native_build.missing_for_cuda():
        raise SystemExit(f"sass_report: expected {lacking}, got none")
    return native_build.build_cuda()


def report(library: Path) -> list[Kernel]:
    """All kernels of a library."""
    resources = parse_resources(run(cuobjdump(), "-res-usage", library))
    instructions = parse_instructions(run(cuobjdump(), "-sass", library))
    symbols = sorted({symbol for _, symbol in resources})
    names = dict(zip(symbols, demangled(symbols), strict=True))
    kernels = [
        Kernel(names[symbol], architecture, **fields, **instructions[architecture, symbol])
        for (architecture, symbol), fields in resources.items()
    ]
    return sorted(kernels, key=lambda k: (k.name, ARCHITECTURES.index(k.architecture)))


def run(*command: object) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return result.stdout


def parse_resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, stack and static shared memory by architecture and symbol."""
    resources, architecture, symbol = {}, None, None
    for line in text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            symbol = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            fields = {"registers": registers, "stack": stack + local, "shared": shared}
            resources[architecture, symbol] = fields
    return resources


def parse_instructions(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """What `count` says of the code of every architecture and symbol."""
    operations, architecture, current = {}, None, []
    for line in text.splitlines():
        if found := INSTRUCTION.match(line):
            current.append(found[1])
        elif found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\w+)", line):
            current = operations[architecture, found[1]] = []
    return {key: count(value) for key, value in operations.items()}


def count(operations: Iterable[str]) -> dict[str, int]:
    """The counted fields of a Kernel, from instructions like ``LDG.E.128.CONSTANT``."""
    counts = dict.fromkeys(("spills", "hmma", "hgmma", "utchmma", "loads16", "tma"), 0)
    for operation in operations:
        kind = operation.split(".")[0]
        if kind.lower() in ("hmma", "hgmma", "utchmma"):
            counts[kind.lower()] += 1
        elif kind in ("UTMALDG", "UBLKCP"):
            counts["tma"] += 1
        elif kind in ("LDL", "STL"):
            counts["spills"] += bytes_of(operation)
        elif kind in ("LDG", "LDGSTS"):
            counts["loads16"] += bytes_of(operation) == 16
    return counts


def bytes_of(operation: str) -> int:
    """How many bytes of a thread a load or store moves."""
    if found := WIDTH.search(operation):
        return int(found[1]) // 8
    narrow = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}
    return next((narrow[part] for part in operation.split(".") if part in narrow), 4)


def demangled(symbols: Sequence[str]) -> list[str]:
    """Names without namespaces and parameters: few::conv3x3_to_few_kernel<Bf16, false>."""
    lines = run("c++filt", *symbols).splitlines()
    return [short_name(line) for line in lines]


def short_name(signature: str) -> str:
    """``few::kernel<Bf16>`` of ``void clsd::cuda::few::kernel<clsd::cuda::Bf16>(...)``."""
    signature = signature.replace("(anonymous namespace)::", "").replace(NAMESPACE, "")
    depth = 0
    for position, character in enumerate(signature):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            signature = signature[:position]
            break
    return signature.removeprefix("void ")


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
