"""The registers of a warp, and the operands of SASS that name them.

What reads an operand is made once for each text: a kernel's run reads millions of them.
"""

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import sass_operations as ops
from numpy import ndarray
from sass_code import WARP_LANES, Kernel, Launch
from sass_operations import LOW, Value

#: Register RZ and predicate PT.
ZERO, TRUE = 255, 7
#: Where parameters start in constant bank 0; from Hopper on, after more of the driver's words.
PARAMETERS = {"sm_80": 0x160, "sm_86": 0x160, "sm_89": 0x160, "sm_90a": 0x210}


def constant_banks(launch: Launch, kernel: Kernel) -> dict[str, bytes]:
    """Bank 0 has the driver's words and the parameters."""
    words = np.array([*launch.block, *launch.grid], np.uint32).tobytes()
    parameters = words.ljust(PARAMETERS[kernel.architecture], b"\0") + launch.parameters
    return {"0x0": parameters, "0x2": kernel.constants}


class Warp:
    """Registers of a warp, and what moves between them.

    Args:
        kernel: that is run.
        launch: that it is a part of.
        block: index of its block.
        number: of the warp in the block.
    """

    def __init__(self, kernel: Kernel, launch: Launch, block: int, number: int) -> None:
        self.registers = np.zeros((256, WARP_LANES), np.uint64)
        self.uniform = np.zeros(64, np.uint64)
        self.predicates = np.zeros((8, WARP_LANES), bool)
        self.uniform_predicates = np.zeros(8, bool)
        self.predicates[TRUE] = self.uniform_predicates[TRUE] = True
        self.banks = constant_banks(launch, kernel)
        self.special = special_registers(launch, block, number)
        self.barriers: dict[str, ndarray] = {}  # lanes that each convergence barrier is for

    # Operands. A text like "-R5.reuse" or "c[0x0][R2+0x160]" gives values, "!P3" booleans.

    def value(self, text: str) -> Value:
        return value_of(text)(self)

    def pair(self, text: str) -> Value:
        """64 bits, from two registers."""
        return pair_of(text)(self)

    def constant(self, text: str, size: int, mask: ndarray | None = None) -> Value:
        """From ``c[bank][offset]``; in the lanes that a mask leaves out, any."""
        name, offset_in = place_of(text)
        offsets, bank = offset_in(self), self.banks[name]
        if np.ndim(offsets) and mask is not None:
            offsets = np.where(mask, offsets, 0)
        if np.max(offsets) + size > len(bank):
            raise ValueError(f"sass_warp: expected {text} within {len(bank)} bytes")
        if np.ndim(offsets) == 0:
            return np.uint64(int.from_bytes(bank[int(offsets) : int(offsets) + size], "little"))
        found = [int.from_bytes(bank[at : at + size], "little") for at in map(int, offsets)]
        return np.array(found, np.uint64)

    def predicate(self, text: str) -> ndarray:
        return predicate_of(text)(self)

    # Results, in the lanes of `mask`.

    def write(self, text: str, value: Value, mask: ndarray) -> None:
        file, index = register(text.split(".")[0])
        if file == "R":
            if index != ZERO:
                np.copyto(self.registers[index], value, where=mask)
        elif text != "URZ":
            self.uniform[index] = value if np.ndim(value) == 0 else value[mask][0]

    def write_pair(self, text: str, value: Value, mask: ndarray) -> None:
        if text in ("RZ", "URZ"):
            return
        file, index = register(text)
        self.write(text, value & LOW, mask)
        self.write(f"{file}{index + 1}", value >> ops.WORD, mask)

    def write_predicate(self, text: str, value: ndarray, mask: ndarray) -> None:
        if text in ("PT", "UPT"):
            return
        if text[0] == "U":
            index = int(text[2:])
            self.uniform_predicates[index] = value if np.ndim(value) == 0 else value[mask][0]
        else:
            np.copyto(self.predicates[int(text[1:])], value, where=mask)


@cache
def register(name: str) -> tuple[str, int]:
    """``R12`` as ("R", 12); RZ is register 255, and URZ the last of its file."""
    if name in ("RZ", "URZ"):
        return ("R", ZERO) if name == "RZ" else ("UR", 63)
    file = "UR" if name[0] == "U" else "R"
    return file, int(name.removeprefix(file))


#: Reads an operand.
Reader = Callable[[Warp], Value]


@cache
def value_of(text: str) -> Reader:
    """Of 32 bits."""
    if text[0] == "-":
        positive = value_of(text[1:])
        return lambda warp: np.uint64(1 << 32) - positive(warp)
    if text[0] == "~":
        inverse = value_of(text[1:])
        return lambda warp: inverse(warp) ^ LOW
    if text[0] in "R0" or text[:2] in ("UR", "c["):
        return plain_value_of(text.split(".")[0])
    raise ValueError(f"sass_warp: expected an integer operand, got {text}")


def plain_value_of(text: str) -> Reader:
    if text[0] == "0":
        number = np.uint64(int(text, 16) & 0xFFFFFFFF)
        return lambda warp: number
    if text[0] == "c":
        return lambda warp: warp.constant(text, 4)
    file, index = register(text)
    return (lambda warp: warp.registers[index]) if file == "R" else lambda warp: warp.uniform[index]


@cache
def pair_of(text: str) -> Reader:
    """Of 64 bits."""
    if text[0] == "-":
        positive = pair_of(text[1:])
        return lambda warp: np.uint64(0) - positive(warp)
    name = text.split(".")[0]
    if name[0] == "c":
        return lambda warp: warp.constant(text, 8)
    if name[0] == "0":
        number = np.uint64(int(name, 16))
        return lambda warp: number
    file, index = register(name)
    top = index if index == ZERO or name == "URZ" else index + 1
    if file == "R":
        return lambda warp: ops.pair(warp.registers[index], warp.registers[top])
    return lambda warp: ops.pair(warp.uniform[index], warp.uniform[top])


@cache
def place_of(text: str) -> tuple[str, Reader]:
    """The name of the bank in ``c[bank][offset]``, and its offset."""
    name, offset = re.findall(r"\[([^\]]*)\]", text)
    return name, sum_of(offset)


@cache
def sum_of(text: str) -> Reader:
    """Of an address: registers, as ``R2.64``, and a constant."""
    terms = list(map(term_of, filter(None, text.split("+"))))

    def total(warp: Warp) -> Value:
        return sum((term(warp) for term in terms), np.uint64(0))

    return total


def term_of(text: str) -> Reader:
    if text.lstrip("-")[0] == "0":
        number = np.uint64(int(text, 16) & 0xFFFFFFFFFFFFFFFF)
        return lambda warp: number
    name, _, suffix = text.partition(".")
    if suffix == "64":
        return pair_of(name)
    if not suffix.startswith("X"):
        return plain_value_of(name)
    scaled, scale = plain_value_of(name), np.uint64(int(suffix[1:]))
    return lambda warp: scaled(warp) * scale


@cache
def predicate_of(text: str) -> Callable[[Warp], ndarray]:
    if text[0] == "!":
        opposite = predicate_of(text[1:])
        return lambda warp: ~opposite(warp)
    name, is_uniform = text.removeprefix("U"), text[0] == "U"
    index = TRUE if name == "PT" else int(name[1:])
    if is_uniform:
        return lambda warp: warp.uniform_predicates[index]
    return lambda warp: warp.predicates[index]


def special_registers(launch: Launch, block: int, number: int) -> dict[str, Value]:
    thread = np.arange(number * WARP_LANES, (number + 1) * WARP_LANES, dtype=np.uint64)
    special = {"SRZ": np.uint64(0), "SR_CgaCtaId": np.uint64(0)}
    special["SR_LANEID"] = thread % np.uint64(WARP_LANES)
    position = np.uint64(block)
    for axis, size, count in zip("XYZ", launch.block, launch.grid, strict=True):
        special[f"SR_TID.{axis}"] = thread % np.uint64(size)
        special[f"SR_CTAID.{axis}"] = position % np.uint64(count)
        thread, position = thread // np.uint64(size), position // np.uint64(count)
    return special
