"""How many instructions a convolution's kernel takes to load its input.

A block is run (`sass_run`), and every register remembers by which instructions its value came
about. The loader is the copies of the input and all that they depend on: whatever instruction has a
part in an address or a predicate of theirs, from the block's and the thread's number on, set-up
included, also where something else needs it too. Left out are a loop's branches, and barriers.
"""

import numpy as np
from numpy import ndarray
from sass_code import WARP_LANES, Kernel, Launch
from sass_effects import is_predicate
from sass_run import Issue, Memory, Step, run_warp, step_of
from sass_warp import Warp, register

#: The emulation numbers the tensors in the upper bits of an address, with the highest one set.
ADDRESS_BITS = np.uint64(48)
PIECE_BYTES = 16


class Traced:
    """A file of registers whose reader is told which are read."""

    def __init__(self, warp: "TracedWarp", file: str, values: ndarray) -> None:
        self.warp, self.file, self.values = warp, file, values

    def __getitem__(self, index: int):
        self.warp.read |= self.warp.came_by.get((self.file, index), 0)
        return self.values[index]

    def __setitem__(self, index: int, value) -> None:
        self.values[index] = value


class TracedWarp(Warp):
    """A warp that knows which of its instructions a value depends on.

    Sets of instructions are the bits of an integer: bit n is the n-th that the warp issues.
    """

    def __init__(self, kernel: Kernel, launch: Launch, block: int, number: int) -> None:
        super().__init__(kernel, launch, block, number)
        self.came_by: dict[tuple[str, int], int] = {}
        self.issued = 0
        self.read = 0  # by which the operands of the instruction that runs have come, and itself
        self.registers = Traced(self, "R", self.registers)
        self.uniform = Traced(self, "UR", self.uniform)
        self.predicates = Traced(self, "P", self.predicates)
        self.uniform_predicates = Traced(self, "UP", self.uniform_predicates)

    def start(self, guard: str) -> None:
        """The next instruction begins."""
        self.read = 1 << self.issued
        self.issued += 1
        if guard:
            self.predicate(guard)

    def write(self, text: str, value, mask: ndarray) -> None:
        read = self.came_to(register(text.split(".")[0]), mask)
        super().write(text, value, mask)
        self.read = read

    def write_predicate(self, text: str, value: ndarray, mask: ndarray) -> None:
        read = self.read
        if not text.endswith("T"):
            name = text.rstrip("0123456789")
            read = self.came_to((name, int(text.removeprefix(name))), mask)
        super().write_predicate(text, value, mask)
        self.read = read

    def came_to(self, name: tuple[str, int], mask: ndarray) -> int:
        """Note what a register comes by: lanes that do not take part keep what they had. What has
        been read, since to write goes by way of reading."""
        kept = 0 if mask.all() else self.came_by.get(name, 0)
        self.came_by[name] = self.read | kept
        return self.read


class InputCopies(Memory):
    """Of a warp, the copies of a tensor: pieces, and the instructions that they depend on."""

    def __init__(self, tensor: int) -> None:
        super().__init__()
        self.tensor = tensor
        self.pieces = self.loader = 0

    def issue(self, warp: TracedWarp, step: Step, taken: ndarray, lanes: int) -> Issue:
        warp.start(step.guard)
        issue = super().issue(warp, step, taken, lanes)
        if step.instruction.kind == "LDGSTS" and lanes:
            (address,) = (access.address for access in step.accesses if access.is_global)
            first = np.broadcast_to(address(warp), WARP_LANES)[taken][0]
            if int(first >> ADDRESS_BITS) == self.tensor:
                assert step.instruction.width == PIECE_BYTES
                for name in filter(is_predicate, step.instruction.operands):
                    warp.predicate(name)
                self.pieces += lanes
                self.loader |= warp.read
        return issue


def input_tensor(launch: Launch) -> int:
    """The number of the first tensor among the arguments: a kernel's input."""
    words = np.frombuffer(launch.parameters[: len(launch.parameters) // 8 * 8], np.uint64)
    return int(words[words >> np.uint64(63) == 1][0] >> ADDRESS_BITS)


def copies_of(kernel: Kernel, launch: Launch, number: int) -> InputCopies:
    """What a warp of the block in the middle of the grid's first row copies of the input."""
    steps = [step_of(instruction) for instruction in kernel.code]
    index_of = {instruction.address: i for i, instruction in enumerate(kernel.code)}
    copies = InputCopies(input_tensor(launch))
    run_warp(steps, index_of, TracedWarp(kernel, launch, launch.grid[0] // 2, number), copies)
    return copies


def instructions_per_piece(kernel: Kernel, launch: Launch) -> float:
    """Instructions of a thread for each 16 bytes of input that it copies, zeros included.

    Args:
        kernel, launch: of a convolution, with arguments from the emulation; of several, the first
            one counts. Its input is no other argument's tensor.

    Raises:
        ValueError: where nothing is copied.
    """
    warps = [copies_of(kernel, launch, number) for number in range(launch.warps)]
    pieces = sum(warp.pieces for warp in warps)
    if pieces == 0:
        raise ValueError(f"sass_loader: expected copies of the input, got none in {kernel.name}")
    return sum(warp.loader.bit_count() for warp in warps) * WARP_LANES / pieces
