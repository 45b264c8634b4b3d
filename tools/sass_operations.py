"""What the integer instructions of SASS compute, for the 32 lanes of a warp at once.

`sass_run` follows a kernel's control flow and addresses with them. Both are integers: floating
point matters in as far as the compiler divides with it. Values are uint64 arrays below 2^32 (a
uniform register's has no dimension), predicates are boolean arrays.

NVIDIA does not document these instructions. What is here are the meanings that public
disassemblers and the compiler's own code sequences agree on, and `tests/cuda/test_sass_run.py`
holds the addresses of whole kernels against what the kernels are written to read and write.
"""

import re
import struct
from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray

LOW = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)
SIGN = np.int64(1 << 31)

Value = ndarray | np.uint64


def signed(x: Value) -> Value:
    """As int64, of which the lower 32 bits were a signed number."""
    return (x.astype(np.int64) ^ SIGN) - SIGN


def unsigned(x: Value) -> Value:
    """The lower 32 bits."""
    return x.astype(np.uint64) & LOW


def pair(low: Value, high: Value) -> Value:
    return low | high << WORD


def shift_left(x: Value, amount: Value) -> Value:
    """Of 64 bits; by 64 and more, nothing is left."""
    return np.where(amount < 64, x << np.minimum(amount, np.uint64(63)), np.uint64(0))


def shift_right(x: Value, amount: Value) -> Value:
    return np.where(amount < 64, x >> np.minimum(amount, np.uint64(63)), np.uint64(0))


def multiply(a: Value, b: Value, is_unsigned: bool) -> Value:
    """All 64 bits of the product, modulo 2^64."""
    a, b = a & LOW, b & LOW
    if is_unsigned:
        return a * b
    return (signed(a) * signed(b)).astype(np.uint64)


def add3(operands: Sequence[Value], carries: Sequence[ndarray]) -> tuple[Value, list[Value]]:
    """The sum, and the carries of a + b and of that + c."""
    a, b, c = operands
    first = a + b
    for carry in carries:
        first = first + carry.astype(np.uint64)
    second = (first & LOW) + c
    return second & LOW, [first >> WORD != 0, second >> WORD != 0]


def table(code: int, a: Value, b: Value, c: Value) -> Value:
    """Bitwise function of three operands, bit 4 a + 2 b + c of `code`."""
    result = np.uint64(0) & (a | b | c)
    for index in range(8):
        if code >> index & 1:
            term = LOW
            for bit, x in ((4, a), (2, b), (1, c)):
                term = term & (x if index & bit else x ^ LOW)
            result = result | term
    return result


def predicate_table(code: int, a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    index = 4 * a.astype(int) + 2 * b.astype(int) + c.astype(int)
    return (code >> index & 1).astype(bool)


COMPARE: dict[str, Callable[[Value, Value], ndarray]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def compare(name: str, a: Value, b: Value, below: ndarray | None) -> ndarray:
    """With `below`, the lower words' result, a and b are the upper ones of 64-bit numbers."""
    if below is None:
        return COMPARE[name](a, b)
    if name == "NE":
        return (a != b) | below
    strictly = {"LE": "LT", "GE": "GT"}.get(name, name)
    beyond = COMPARE[strictly](a, b) if strictly in ("LT", "GT") else np.False_
    return beyond | (a == b) & below


def combine(name: str, a: ndarray, b: ndarray) -> ndarray:
    return {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}[name](a, b)


def permute(a: Value, selector: Value, c: Value) -> Value:
    """Bytes of c and a; a selector's upper bit repeats the byte's sign."""
    both, result = pair(a, c), np.uint64(0)
    for position in range(4):
        choice = selector >> np.uint64(4 * position) & np.uint64(15)
        byte = both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        filled = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(choice & np.uint64(8), filled, byte)
        result = result | byte << np.uint64(8 * position)
    return result


def rounded(x: Value, is_up: bool) -> Value:
    """The bits of the float32 next to an integer, or of the least one that is no less."""
    exact = x.astype(np.longdouble)
    nearest = exact.astype(np.float32)
    if is_up:
        up = np.nextafter(nearest, np.float32(np.inf), dtype=np.float32)
        nearest = np.where(nearest.astype(np.longdouble) < exact, up, nearest)
    return float_bits(nearest)


def float_bits(x: Value) -> Value:
    return np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)


def as_float(bits: Value) -> Value:
    return np.asarray(bits).astype(np.uint32).view(np.float32)


def reciprocal(bits: Value) -> Value:
    with np.errstate(divide="ignore", over="ignore"):
        return float_bits(np.float32(1) / as_float(bits))


def truncated(bits: Value, width: int) -> Value:
    x = np.nan_to_num(as_float(bits).astype(np.longdouble), posinf=2.0**width)
    return np.clip(x, 0, np.longdouble(2) ** width - 1).astype(np.uint64)


def halves(low: str, high: str) -> int:
    """Two float16 constants, as HFMA2 adds them to zero, in a word."""
    encoded = [struct.unpack("H", struct.pack("e", float(x)))[0] for x in (low, high)]
    return encoded[0] | encoded[1] << 16


def funnel(modifiers: Sequence[str], a: Value, amount: Value, c: Value) -> Value:
    """SHF: a part of the shifted 64 bits of c and a."""
    both = pair(a, c)
    if "L" in modifiers:
        shifted = shift_left(both, amount)
    elif "S32" in modifiers or "S64" in modifiers:
        distance = np.minimum(amount, np.uint64(63)).astype(np.int64)
        shifted = (both.astype(np.int64) >> distance).astype(np.uint64)
    else:
        shifted = shift_right(both, amount)
    return shifted >> WORD if "HI" in modifiers else shifted & LOW


#: Instructions that compute, move or load what neither control flow nor addresses come from.
DATA = re.compile(
    r"F(ADD|FMA|MUL|SEL|SETP?|MNMX|CHK)|F2FP?|D(ADD|MUL|FMA|SETP)|I?MMA|HG?MMA"
    r"|H(ADD|FMA|MUL|SET|SETP|MNMX)2|(LD|ST)[GSL]?|LDSM|STSM|LDGSTS|ATOM[GS]?|REDG?|MOVM"
)
#: Instructions that order others, or do nothing.
ORDER = re.compile(
    r"BAR|DEPBAR|LDGDEPBAR|MEMBAR|FENCE|ERRBAR|CCTL|NOP|YIELD|WARPSYNC|WARPGROUP|PREEXIT|NANOSLEEP"
)
