"""The registers of a warp, and the operands of SASS that name them."""

import re

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
        if text[0] == "-":
            return np.uint64(1 << 32) - self.value(text[1:])
        if text[0] == "~":
            return self.value(text[1:]) ^ LOW
        if text[0] in "R0" or text[:2] in ("UR", "c["):
            return self.plain_value(text.split(".")[0])
        raise ValueError(f"sass_warp: expected an integer operand, got {text}")

    def plain_value(self, text: str) -> Value:
        if text[0] == "0":
            return np.uint64(int(text, 16) & 0xFFFFFFFF)
        if text[0] == "c":
            return self.constant(text, 4)
        file, index = register(text)
        return file_of(self, file)[index]

    def pair(self, text: str) -> Value:
        """64 bits, from two registers."""
        if text[0] == "-":
            return np.uint64(0) - self.pair(text[1:])
        name = text.split(".")[0]
        if name[0] == "c":
            return self.constant(text, 8)
        if name[0] == "0":
            return np.uint64(int(name, 16))
        file, index = register(name)
        values = file_of(self, file)
        top = index if index == ZERO or name == "URZ" else index + 1
        return ops.pair(values[index], values[top])

    def constant(self, text: str, size: int, mask: ndarray | None = None) -> Value:
        """From ``c[bank][offset]``; 0 in the lanes that a mask leaves out."""
        name, inside = re.findall(r"\[([^\]]*)\]", text)
        offsets = np.atleast_1d(self.sum_of(inside)).astype(int)
        if mask is not None:
            offsets = np.where(mask, offsets, 0)
        bank = self.banks[name]
        if offsets.max() + size > len(bank):
            raise ValueError(f"sass_warp: expected {text} within {len(bank)} bytes")
        found = [int.from_bytes(bank[at : at + size], "little") for at in offsets]
        values = np.array(found, np.uint64)
        return values if values.size > 1 else values[0]

    def sum_of(self, text: str) -> Value:
        """Of an address: registers, as ``R2.64``, and a constant."""
        total = np.uint64(0)
        for term in filter(None, re.split(r"\+", text)):
            if term.lstrip("-")[0] == "0":
                total = total + np.uint64(int(term, 16) & 0xFFFFFFFFFFFFFFFF)
            else:
                name, _, suffix = term.partition(".")
                wide = suffix == "64"
                scale = np.uint64(int(suffix[1:]) if suffix.startswith("X") else 1)
                total = total + (self.pair(name) if wide else self.plain_value(name)) * scale
        return total

    def predicate(self, text: str) -> ndarray:
        if text[0] == "!":
            return ~self.predicate(text[1:])
        if text in ("PT", "UPT"):
            return self.predicates[TRUE] if text == "PT" else self.uniform_predicates[TRUE]
        if text[0] == "U":
            return self.uniform_predicates[int(text[2:])]
        return self.predicates[int(text[1:])]

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


def register(name: str) -> tuple[str, int]:
    """``R12`` as ("R", 12); RZ is register 255, and URZ the last of its file."""
    if name in ("RZ", "URZ"):
        return ("R", ZERO) if name == "RZ" else ("UR", 63)
    file = "UR" if name[0] == "U" else "R"
    return file, int(name.removeprefix(file))


def file_of(warp: Warp, file: str) -> ndarray:
    return warp.registers if file == "R" else warp.uniform


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
