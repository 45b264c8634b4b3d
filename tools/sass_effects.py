"""What each instruction of SASS does to the registers of `sass_warp.Warp`."""

import re
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import sass_operations as ops
from numpy import ndarray
from sass_code import WARP_LANES, Instruction

#: Takes the warp and the lanes that take part.
Effect = Callable[[object, ndarray], None]


@cache
def effect(instruction: Instruction) -> Effect | None:
    """Of one instruction; None where nothing comes of it that control flow or addresses need.

    Raises:
        ValueError: for an instruction that is not known.
    """
    kind = instruction.kind
    is_data = ops.DATA.fullmatch(kind) and not is_constant(instruction)
    if is_data or ops.ORDER.fullmatch(kind):
        return None
    function = EFFECTS.get(kind) or EFFECTS.get(kind.removeprefix("U"))
    if function is None:
        raise ValueError(f"sass_effects: expected a known instruction, got {instruction}")
    return partial(function, instruction)


def is_predicate(text: str) -> bool:
    name = text.lstrip("!")
    return name in ("PT", "UPT") or name.startswith(("P", "UP")) and name[-1].isdigit()


@cache
def split_results(operands: tuple[str, ...]) -> tuple[list[str], str, list[str], list[str]]:
    """Predicates that are written before or after the register, the register, its sources and the
    predicates that are read."""
    operands = list(operands)
    written = []
    while is_predicate(operands[0]):
        written.append(operands.pop(0))
    target = operands.pop(0)
    while operands and is_predicate(operands[0]):
        written.append(operands.pop(0))
    read = []
    while operands and is_predicate(operands[-1]):
        read.insert(0, operands.pop())
    return written, target, operands, read


# Effects: each takes the instruction, the warp, and the lanes that take part.


def move(instruction, warp, mask) -> None:
    warp.write(instruction.operands[0], warp.value(instruction.operands[1]), mask)


def add(instruction, warp, mask) -> None:
    written, target, sources, read = split_results(instruction.operands)
    if "64" in instruction.modifiers:
        total = sum(map(warp.pair, sources[1:]), warp.pair(sources[0]))
        return warp.write_pair(target, total, mask)
    sources = (*sources, "RZ")[:3]
    carries = list(map(warp.predicate, read)) if "X" in instruction.modifiers else []
    total, carried = ops.add3([warp.value(s) for s in sources], carries)
    warp.write(target, total, mask)
    if len(written) == 1:
        carried = [carried[0] | carried[1]]
    for name, carry in zip(written, carried, strict=False):
        warp.write_predicate(name, carry, mask)


def multiply_add(instruction, warp, mask) -> None:
    written, target, (a, b, c), read = split_results(instruction.operands)
    modifiers = instruction.modifiers
    is_wide, is_high = "WIDE" in modifiers, "HI" in modifiers
    product = ops.multiply(
        warp.value(a), warp.value(b), "U32" in modifiers or not is_high | is_wide
    )
    addend = warp.pair(c) if is_wide or is_high else warp.value(c)
    total = product + addend
    if "X" in modifiers:
        total = total + warp.predicate(read[-1]).astype(np.uint64)
    if is_wide:
        warp.write_pair(target, total, mask)
    else:
        warp.write(target, total >> ops.WORD if is_high else total & ops.LOW, mask)
    for name in written[:1]:
        warp.write_predicate(name, total < addend, mask)


def scaled_add(instruction, warp, mask) -> None:
    """LEA: (a << shift) + b, or of its upper word, with c above a or its sign."""
    written, target, sources, read = split_results(instruction.operands)
    a, b, shift = warp.value(sources[0]), warp.value(sources[1]), warp.value(sources[-1])
    if "HI" in instruction.modifiers:
        is_signed = "SX32" in instruction.modifiers
        above = ops.unsigned(ops.signed(a) >> np.int64(31)) if is_signed else warp.value(sources[2])
        a = ops.shift_left(ops.pair(a & ops.LOW, above), shift) >> ops.WORD
    else:
        a = ops.shift_left(a, shift) & ops.LOW
    carries = [warp.predicate(read[-1])] if "X" in instruction.modifiers else []
    total, carried = ops.add3([a, b, np.uint64(0)], carries)
    warp.write(target, total, mask)
    for name in written[:1]:
        warp.write_predicate(name, carried[0], mask)


def bitwise(instruction, warp, mask) -> None:
    written, target, (a, b, c, code), (other,) = split_results(instruction.operands)
    result = ops.table(int(code, 16), *map(warp.value, (a, b, c)))
    warp.write(target, result, mask)
    for name in written[:1]:
        warp.write_predicate(name, (result != 0) | warp.predicate(other), mask)


def predicate_bitwise(instruction, warp, mask) -> None:
    first, second, a, b, c, *codes = instruction.operands
    inputs = [warp.predicate(name) for name in (a, b, c)]
    for name, code in zip((first, second), codes, strict=False):
        warp.write_predicate(name, ops.predicate_table(int(code, 16), *inputs), mask)


def compare(instruction, warp, mask) -> None:
    first, second, a, b, *read = instruction.operands
    modifiers = instruction.modifiers
    a, b = warp.value(a) & ops.LOW, warp.value(b) & ops.LOW
    if "U32" not in modifiers:
        a, b = ops.signed(a), ops.signed(b)
    below = warp.predicate(read[1]) if "EX" in modifiers else None
    result = ops.compare(modifiers[0], a, b, below)
    operation = next(m for m in modifiers if m in ("AND", "OR", "XOR"))
    other = warp.predicate(read[0])
    warp.write_predicate(first, ops.combine(operation, result, other), mask)
    warp.write_predicate(second, ops.combine(operation, ~result, other), mask)


def select(instruction, warp, mask) -> None:
    target, a, b, condition = instruction.operands
    chosen = np.where(warp.predicate(condition), warp.value(a) & ops.LOW, warp.value(b) & ops.LOW)
    warp.write(target, chosen, mask)


def shuffle(instruction, warp, mask) -> None:
    """From the lane that is named; what takes part in sums over lanes is data."""
    if "IDX" not in instruction.modifiers:
        return
    _, target, source, lane, _ = instruction.operands
    lanes = np.broadcast_to(warp.value(lane), WARP_LANES).astype(int) % WARP_LANES
    warp.write(target, np.broadcast_to(warp.value(source), WARP_LANES)[lanes], mask)


def extreme(instruction, warp, mask) -> None:
    """IMNMX and VIMNMX: the lesser one where the predicate holds; VIADDMNMX adds first."""
    _, target, sources, read = split_results(instruction.operands)
    values = [warp.value(s) & ops.LOW for s in sources]
    if instruction.kind == "VIADDMNMX":
        values = [values[0] + values[1] & ops.LOW, values[2]]
    if "U32" not in instruction.modifiers:
        values = [ops.signed(v) for v in values]
    chosen = np.where(warp.predicate(read[-1]), np.minimum(*values), np.maximum(*values))
    warp.write(target, ops.unsigned(chosen), mask)


def shift(instruction, warp, mask) -> None:
    target, a, amount, c = instruction.operands
    values = [warp.value(x) & ops.LOW for x in (a, amount, c)]
    warp.write(target, ops.funnel(instruction.modifiers, *values), mask)


def permute(instruction, warp, mask) -> None:
    target, *sources = instruction.operands
    warp.write(target, ops.permute(*(warp.value(s) & ops.LOW for s in sources)), mask)


def absolute(instruction, warp, mask) -> None:
    value = np.abs(ops.signed(warp.value(instruction.operands[1]) & ops.LOW))
    warp.write(instruction.operands[0], ops.unsigned(value), mask)


def to_float(instruction, warp, mask) -> None:
    target, source = instruction.operands
    if "U64" in instruction.modifiers:
        value = warp.pair(source)
    else:
        value = warp.value(source) & ops.LOW
        value = value if "U32" in instruction.modifiers else ops.signed(value)
    warp.write(target, ops.rounded(value, "RP" in instruction.modifiers), mask)


def to_integer(instruction, warp, mask) -> None:
    target, source = instruction.operands
    is_wide = "U64" in instruction.modifiers
    value = ops.truncated(warp.value(source), 64 if is_wide else 32)
    (warp.write_pair if is_wide else warp.write)(target, value, mask)


def special_function(instruction, warp, mask) -> None:
    if "RCP" in instruction.modifiers:  # a division's; all others are data
        target, source = instruction.operands
        warp.write(target, ops.reciprocal(warp.value(source)), mask)


def special_register(instruction, warp, mask) -> None:
    target, source = instruction.operands
    value = warp.special[source]
    wide = instruction.kind == "CS2R" and "32" not in instruction.modifiers
    (warp.write_pair if wide else warp.write)(target, value, mask)


def load_constant(instruction, warp, mask) -> None:
    target, source = instruction.operands
    kind = next(filter(re.compile(r"64|[US](8|16)").fullmatch, instruction.modifiers), "32")
    bits = int(kind.lstrip("US"))
    value = warp.constant(source, bits // 8, mask)
    if kind[0] == "S":
        value = value | np.where(
            value >> np.uint64(bits - 1), ops.LOW << np.uint64(bits) & ops.LOW, np.uint64(0)
        )
    (warp.write_pair if bits == 64 else warp.write)(target, value, mask)


def half_constant(instruction, warp, mask) -> None:
    target, *_, high, low = instruction.operands
    warp.write(target, np.uint64(ops.halves(low, high)), mask)


def is_constant(instruction: Instruction) -> bool:
    """Whether it is an HFMA2 that makes a constant of two halves."""
    return instruction.kind == "HFMA2" and instruction.operands[1:3] == ("-RZ", "RZ")


def predicates_to_register(instruction, warp, mask) -> None:
    target, _, source, bits = instruction.operands
    wanted, packed = warp.value(bits), np.uint64(0)
    for index in range(7):
        packed = packed | warp.predicates[index].astype(np.uint64) << np.uint64(index)
    warp.write(target, warp.value(source) & ~wanted | packed & wanted, mask)


def register_to_predicates(instruction, warp, mask) -> None:
    _, source, bits = instruction.operands
    wanted = int(bits, 16)
    for index in range(7):
        if wanted >> index & 1:
            value = warp.value(source) >> np.uint64(index) & np.uint64(1)
            warp.write_predicate(f"P{index}", value.astype(bool), mask)


def vote(instruction, warp, mask) -> None:
    """What holds in any or all lanes, as a predicate, and which those are, as a register."""
    *targets, condition = instruction.operands
    holds = np.broadcast_to(warp.predicate(condition), mask.shape) & mask
    result = (holds | ~mask).all() if "ALL" in instruction.modifiers else holds.any()
    for target in targets:
        if is_predicate(target):
            warp.write_predicate(target, result, mask)
        else:
            lanes = sum(1 << lane for lane, held in enumerate(holds) if held)
            warp.write(target, np.uint64(lanes), mask)


def extend(instruction, warp, mask) -> None:
    """SGXT: the lower bits as a number of 32, with or without a sign."""
    target, source, bits = instruction.operands
    width = int(bits, 16)
    value = warp.value(source) & np.uint64((1 << width) - 1)
    if "U32" not in instruction.modifiers:
        sign = np.uint64(1 << width - 1)
        value = (value ^ sign) - sign & ops.LOW
    warp.write(target, value, mask)


EFFECTS = {
    "MOV": move,
    "R2UR": move,
    "IADD3": add,
    "VIADD": add,
    "IMAD": multiply_add,
    "LEA": scaled_add,
    "LOP3": bitwise,
    "PLOP3": predicate_bitwise,
    "ISETP": compare,
    "SEL": select,
    "SHFL": shuffle,
    "IMNMX": extreme,
    "VIMNMX": extreme,
    "VIADDMNMX": extreme,
    "SHF": shift,
    "PRMT": permute,
    "IABS": absolute,
    "I2F": to_float,
    "I2FP": to_float,
    "F2I": to_integer,
    "MUFU": special_function,
    "S2R": special_register,
    "S2UR": special_register,
    "CS2R": special_register,
    "LDC": load_constant,
    "HFMA2": half_constant,
    "P2R": predicates_to_register,
    "R2P": register_to_predicates,
    "VOTE": vote,
    "VOTEU": vote,
    "SGXT": extend,
}
