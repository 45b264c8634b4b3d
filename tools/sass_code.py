"""Machine code of kernels as cuobjdump lists it: instructions, with the control bits of each."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import sass_report

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
        return self.operation.split(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.operation.split(".")[1:])


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
        found = sass_report.parse_resources(self.dump("-res-usage"))
        self.resources = {symbol: used for (_, symbol), used in found.items()}
        self.banks = constants(self.dump("-elf"))
        self.symbols = dict(
            zip(sass_report.demangled(list(self.resources)), self.resources, strict=True)
        )
        self.read: dict[str, Kernel] = {}

    def dump(self, *options: str) -> str:
        tool = sass_report.cuobjdump()
        return sass_report.run(tool, *options, "-arch", self.architecture, self.path)

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
        if found := re.match(r"\.nv\.constant2\.(\w+)$", line):
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
