"""Machine code of kernels as cuobjdump lists it: instructions, with the control bits of each, and
what a kernel uses of a multiprocessor."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

NAMESPACE = "clsd::cuda::"

#: An instruction: its address, predicate, operation, operands, and the encoding's lower half.
LINE = re.compile(
    r"\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<operation>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*?)\s*;"
)
#: The upper half of the encoding stands alone on the next line.
UPPER_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
#: Control bits start there in the upper half.
CONTROL_SHIFT = 41
WARP_LANES = 32
INSTRUCTION_BYTES = 16
#: Bytes that a lane moves, by modifier; without one, WORD_BYTES.
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
WORD_BYTES = 4


class Control(NamedTuple):
    """What the compiler tells the scheduler.

    stall: cycles until the warp's next instruction. write, read: the scoreboard that is set until
    the result is there, or the operands have been read; None without. wait: the scoreboards that
    the instruction waits for.
    """

    stall: int
    write: int | None
    read: int | None
    wait: tuple[int, ...]


class Instruction(NamedTuple):
    """One instruction; ``guard`` is its predicate, like ``!P3``, or empty."""

    address: int
    guard: str
    operation: str
    operands: tuple[str, ...]
    control: Control | None = None

    @property
    def kind(self) -> str:
        return parts(self.operation)[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return parts(self.operation)[1]

    @property
    def width(self) -> int:
        """Bytes that a lane moves; LDSM's and STSM's are those that a lane addresses."""
        return parts(self.operation)[2]


@cache  # asked for with every instruction that a warp issues
def parts(operation: str) -> tuple[str, tuple[str, ...], int]:
    """Kind, modifiers and width of an Instruction."""
    kind, *modifiers = operation.split(".")
    width = next((WIDTHS[m] for m in modifiers if m in WIDTHS), WORD_BYTES)
    return kind, tuple(modifiers), 16 if kind in ("LDSM", "STSM") else width


class Kernel(NamedTuple):
    """A kernel for one architecture.

    constants: bank 2, what the compiler could not write into instructions. registers: of a thread.
    shared: bytes of static shared memory of a block.
    """

    name: str
    architecture: str
    code: list[Instruction]
    constants: bytes
    registers: int
    shared: int


class Launch(NamedTuple):
    """What a kernel is launched with; ``parameters`` are the bytes of its arguments in order."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes

    @property
    def threads(self) -> int:
        return math.prod(self.block)

    @property
    def warps(self) -> int:
        return self.threads // WARP_LANES

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)


class Binary:
    """A library or cubin, of which one architecture's kernels are read as they are asked for, by
    names like ``few::conv3x3_to_few_kernel<Bf16, false>``."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.path = path
        self.architecture = architecture
        found = resources(self.dump("-res-usage"))
        self.resources = {symbol: used for (_, symbol), used in found.items()}
        self.banks = constants(self.dump("-elf"))
        self.symbols = dict(zip(demangled(list(self.resources)), self.resources, strict=True))
        self.read: dict[str, Kernel] = {}

    def dump(self, *options: str) -> str:
        return cuobjdump_of(self.path, *options, "-arch", self.architecture)

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.read:
            symbol = self.symbols[name]
            (code,) = functions(self.dump("-sass", "-fun", symbol)).values()
            used = self.resources[symbol]
            self.read[name] = Kernel(
                name,
                self.architecture,
                code,
                self.banks.get(symbol, b""),
                used["registers"],
                used["shared"],
            )
        return self.read[name]


def constants(sections: str) -> dict[str, bytes]:
    """Constant bank 2 of every symbol that has one, from cuobjdump's list of sections."""
    banks, current = {}, None
    for line in sections.splitlines():
        if line.startswith(".nv.") and (found := re.match(r"\.nv\.constant2\.(\w+)$", line)):
            current = found[1]
            banks[current] = b""
        elif current and re.match(r"0x[0-9a-f]{8}\b", line):
            words = [int(word, 16) for word in line.split()]
            banks[current] += b"".join(word.to_bytes(4, "little") for word in words)
        else:
            current = None
    return banks


def functions(listing: str) -> dict[tuple[str, str], list[Instruction]]:
    """The code of every architecture and symbol."""
    code, architecture, current = {}, None, []
    for line in listing.splitlines():
        if found := LINE.match(line):
            current.append(instruction(found))
        elif found := UPPER_HALF.match(line):
            if current:
                current[-1] = current[-1]._replace(control=control(int(found[1], 16)))
        elif line.startswith("arch = "):
            architecture = line.removeprefix("arch = ").strip()
        elif found := re.match(r"\s*Function : (\w+)", line):
            current = code[architecture, found[1]] = []
    return code


def instruction(found: re.Match) -> Instruction:
    operands = tuple(found["operands"].split(", ")) if found["operands"] else ()
    return Instruction(
        int(found["address"], 16), found["guard"] or "", found["operation"], operands
    )


def control(upper_half: int) -> Control:
    bits = upper_half >> CONTROL_SHIFT
    none = 7
    write, read = bits >> 5 & 7, bits >> 8 & 7
    wait = tuple(k for k in range(6) if bits >> 11 >> k & 1)
    return Control(
        bits & 15, None if write == none else write, None if read == none else read, wait
    )


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


def cuobjdump_of(path: Path, *options: object) -> str:
    """What it writes about a library or cubin."""
    return run(cuobjdump(), *options, path)


def run(*command: object) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return result.stdout


def resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, stack and static shared memory by architecture and symbol."""
    used, architecture, symbol = {}, None, None
    for line in text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            symbol = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            fields = {"registers": registers, "stack": stack + local, "shared": shared}
            used[architecture, symbol] = fields
    return used


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
