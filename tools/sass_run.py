"""Runs the machine code of a kernel as far as its control flow and addresses go.

A warp is run from a block's index and the launch's parameters to its end, with no memory behind it:
what it loads reads as zeros. That gives what it issues, instruction by instruction, which
`sass_clock` prices; nothing about trips or branches is assumed. An instruction that this does not
know is an error.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from sass_code import WARP_LANES, Instruction, Kernel, Launch
from sass_effects import Effect, effect
from sass_warp import Reader, Warp, sum_of

#: A warp that has issued so many instructions is taken to be in an endless loop.
MOST_ISSUES = 1_000_000
BANKS, BANK_BYTES = 32, 4
SECTOR_BYTES, LINE_BYTES = 32, 128


class Issue(NamedTuple):
    """An instruction that a warp issues.

    lanes: that take part. wavefronts: how often it uses the 128 bytes a cycle of shared memory and
    the L1 cache. sectors: that come from or go to the L2 cache.
    """

    instruction: Instruction
    lanes: int
    wavefronts: int = 0
    sectors: int = 0


#: Called with every access of memory: the instruction, the operand and each lane's address.
Visit = Callable[[Instruction, str, ndarray], None]


class Group(NamedTuple):
    """Lanes of a warp that are at the same instruction."""

    at: int
    mask: ndarray
    waits_for: str = ""  # a convergence barrier


def run(
    kernel: Kernel, launch: Launch, block: int, visit: Visit | None = None
) -> list[list[Issue]]:
    """All that each warp of a block issues, from the kernel's first instruction to its last.

    Args:
        kernel, launch: the code and its arguments.
        block: index in the grid.
        visit: sees the addresses.
    """
    memory, steps = Memory(visit), [step_of(instruction) for instruction in kernel.code]
    index_of = {instruction.address: i for i, instruction in enumerate(kernel.code)}
    warps = [Warp(kernel, launch, block, number) for number in range(launch.warps)]
    return [run_warp(steps, index_of, warp, memory) for warp in warps]


class Access(NamedTuple):
    """An operand by which an instruction addresses memory; is_global: not a block's own."""

    operand: str
    address: Reader
    is_global: bool


class Step(NamedTuple):
    """An instruction, and what becomes of it in every warp."""

    instruction: Instruction
    guard: str
    flow: "Flow | None"
    effect: Effect | None
    accesses: tuple[Access, ...]


@cache
def step_of(instruction: Instruction) -> Step:
    kind = instruction.kind
    if kind in FLOW:
        return Step(instruction, instruction.guard, FLOW[kind], None, ())
    operands = filter(is_address, instruction.operands) if kind in (*SHARED, *GLOBAL) else ()
    accesses = (Access(o, sum_of(inner(o)), is_global(instruction, o)) for o in operands)
    return Step(instruction, instruction.guard, None, effect(instruction), tuple(accesses))


def run_warp(
    steps: Sequence[Step], index_of: dict[int, int], warp: Warp, memory: "Memory"
) -> list[Issue]:
    """Diverged lanes take turns, the hindmost first."""
    groups, issues = [Group(0, np.ones(WARP_LANES, bool))], []
    while groups:
        group = min((g for g in groups if not g.waits_for), key=lambda g: g.at)
        groups = [other for other in groups if other is not group]
        at, mask = group.at, group.mask
        while True:
            step = steps[at]
            taken = mask & warp.predicate(step.guard) if step.guard else mask
            lanes = int(np.count_nonzero(taken))
            issues.append(memory.issue(warp, step, taken, lanes))
            if len(issues) > MOST_ISSUES:
                raise RuntimeError(f"sass_run: expected an end within {MOST_ISSUES} instructions")
            if step.flow is not None:
                group = Group(at, mask)
                groups += step.flow(warp, step.instruction, group, taken, index_of)
                groups = released(warp, groups)
                break
            if step.effect is not None and lanes:
                step.effect(warp, taken)
            at += 1
            if groups:  # which may be the hindmost now
                groups.append(Group(at, mask))
                break
    return issues


def released(warp: Warp, groups: list[Group]) -> list[Group]:
    """Without empty ones. Lanes that all others of their convergence barrier have come to go on, as
    one group: nothing else brings lanes together again."""
    groups = [group for group in groups if group.mask.any()]
    for name in {group.waits_for for group in groups} - {""}:
        waiting = [group for group in groups if group.waits_for == name]
        arrived = np.logical_or.reduce([group.mask for group in waiting])
        alive = np.logical_or.reduce([group.mask for group in groups])
        if not (warp.barriers[name] & alive & ~arrived).any():
            groups = [group for group in groups if group.waits_for != name]
            groups.append(Group(waiting[0].at + 1, arrived))
    return groups


# Control flow: what becomes of a group. Each takes the warp, the instruction, the group, its lanes
# that take the instruction, and the positions of addresses.


def branch(warp, instruction, group, taken, index_of) -> list[Group]:
    *conditions, target = instruction.operands
    if "DIV" in instruction.modifiers:  # to code for lanes that are apart
        return [group._replace(at=group.at + 1)]
    for condition in conditions:
        taken = taken & warp.predicate(condition)
    there = Group(index_of[int(target, 16)], taken)
    return [there, Group(group.at + 1, group.mask & ~taken)]


def come_back(warp, instruction, group, taken, index_of) -> list[Group]:
    address = warp.value(instruction.operands[0].split(" ")[0])
    left = [Group(group.at + 1, group.mask & ~taken)]
    for target in np.unique(address[taken]):
        left.append(Group(index_of[int(target)], taken & (address == target)))
    return left


def leave(warp, instruction, group, taken, index_of) -> list[Group]:
    return [Group(group.at + 1, group.mask & ~taken)]


def open_barrier(warp, instruction, group, taken, index_of) -> list[Group]:
    warp.barriers[instruction.operands[0]] = group.mask.copy()
    return [group._replace(at=group.at + 1)]


def wait_at_barrier(warp, instruction, group, taken, index_of) -> list[Group]:
    return [Group(group.at, taken, instruction.operands[0])]


def leave_barrier(warp, instruction, group, taken, index_of) -> list[Group]:
    warp.barriers[instruction.operands[-1]] &= ~taken
    return [group._replace(at=group.at + 1)]


#: What becomes of a group at an instruction.
Flow = Callable[[Warp, Instruction, Group, ndarray, dict[int, int]], list[Group]]
FLOW: dict[str, Flow] = {
    "BRA": branch,
    "CALL": branch,
    "RET": come_back,
    "EXIT": leave,
    "BSSY": open_barrier,
    "BSYNC": wait_at_barrier,
    "BREAK": leave_barrier,
}

# Memory.

SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")
GLOBAL = ("LDG", "STG", "LDGSTS", "RED", "ATOMG")


class Memory:
    """What a block's accesses of memory take; no values.

    Args:
        visit: sees the addresses.
    """

    def __init__(self, visit: Visit | None = None) -> None:
        self.visit = visit
        self.loaded: set[int] = set()  # sectors that the block has loaded

    def issue(self, warp: Warp, step: Step, taken: ndarray, lanes: int) -> Issue:
        instruction, wavefronts, sectors = step.instruction, 0, 0
        for access in step.accesses if lanes else ():
            addresses = np.broadcast_to(access.address(warp), WARP_LANES)[taken]
            if self.visit is not None:
                self.visit(instruction, access.operand, addresses)
            if access.is_global:
                touched = sectors_of(addresses, instruction.width)
                lines = -(-len(touched) * SECTOR_BYTES // LINE_BYTES)
                wavefronts = max(wavefronts, lines)
                sectors = self.fetched(instruction, touched)
            else:
                wavefronts = max(wavefronts, shared_wavefronts(instruction, addresses))
        return Issue(instruction, lanes, wavefronts, sectors)

    def fetched(self, instruction: Instruction, touched: set[int]) -> int:
        """Sectors of the L2 cache: the L1 cache keeps what the block has loaded, but for copies."""
        if instruction.kind != "LDG":
            return len(touched)
        new = touched - self.loaded
        self.loaded |= new
        return len(new)


def sectors_of(addresses: ndarray, size: int) -> set[int]:
    first, last = addresses // SECTOR_BYTES, (addresses + np.uint64(size - 1)) // SECTOR_BYTES
    return {*first.tolist(), *last.tolist()}


def is_address(operand: str) -> bool:
    return operand.startswith(("[", "desc["))


def inner(operand: str) -> str:
    """Of the last brackets: ``R2.64+0x20`` of ``desc[UR6][R2.64+0x20]``."""
    return operand[operand.rindex("[") + 1 : operand.rindex("]")]


def is_global(instruction: Instruction, operand: str) -> bool:
    if instruction.kind == "LDGSTS":
        return operand != next(filter(is_address, instruction.operands))
    return instruction.kind in GLOBAL


def shared_wavefronts(instruction: Instruction, addresses: ndarray) -> int:
    """How often the banks are used."""
    size = instruction.width
    if instruction.kind in ("LDSM", "STSM"):
        last = instruction.modifiers[-1]
        addresses = addresses[: 8 * int(last) if last.isdigit() else 8]
    starts = tuple((addresses // np.uint64(BANK_BYTES)).tolist())
    return uses_of_banks(starts, max(1, size // BANK_BYTES))


@lru_cache(maxsize=1 << 14)  # the same again in every turn of a loop, and in every block
def uses_of_banks(starts: tuple[int, ...], words_each: int) -> int:
    """Of lanes that move so many words each, from these: lanes that together move all banks' words
    go at once, and different words of a bank one after another."""
    together, total = BANKS // words_each, 0
    for first in range(0, len(starts), together):
        words = {at + k for at in starts[first : first + together] for k in range(words_each)}
        total += max(Counter(word % BANKS for word in words).values())
    return total
