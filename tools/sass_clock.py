"""How long a multiprocessor takes for what its warps issue: the model of `sass_time`.

One of its four schedulers is replayed with its warps; the others are taken to be as busy. A cycle
issues one instruction, of the warp that can go on first. The compiler's stall counts and
scoreboards say when a warp can; what they leave open are the latencies of LATENCY, and how long the
units that warps share are taken. Left out: caches of instructions, conflicts of register banks, the
size of the L1 cache, what warpgroup products read of shared memory, clocks under load, and the
memory beyond the L2 cache.

Nothing is fitted: a number here has a source, and only a measurement on a GPU may change it. "The
review" is that of these kernels' first version, which replayed them likewise, without the integer
lanes and the caches.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from sass_code import WARP_LANES, Control, Instruction, Kernel, Launch
from sass_loader import instructions_per_piece
from sass_run import GLOBAL, SECTOR_BYTES, Issue, run

SCHEDULERS = 4


class Card(NamedTuple):
    """A GPU.

    name, architecture, multiprocessors and clock_ghz: of the data sheet; an H100 at what it keeps
    under load. hmma: cycles of a scheduler's tensor cores for an m16n8k16 with float32 sums.
    float32: cycles of a warp's 32 multiply-adds. shared_bytes, warps, blocks: that a multiprocessor
    has room for.
    """

    name: str
    architecture: str
    multiprocessors: int
    clock_ghz: float
    hmma: float
    float32: int
    shared_bytes: int
    warps: int
    blocks: int


#: hmma: 2048 multiply-adds at the data sheets' 256 (A100) and 64 (GeForce: 165 and 71 TFLOP/s) a
#: cycle; on an H100 mma.sync reaches 62 % of wgmma, by the review of the kernels.
#: All else: compute capabilities in the CUDA C++ Programming Guide.
CARDS = {
    "h100": Card("H100", "sm_90a", 132, 1.70, 6.4, 1, 228 * 1024, 64, 32),
    "a100": Card("A100", "sm_80", 108, 1.41, 8.0, 2, 164 * 1024, 64, 32),
    "rtx4090": Card("RTX 4090", "sm_89", 128, 2.52, 32.0, 1, 100 * 1024, 48, 24),
    "rtx3090": Card("RTX 3090", "sm_86", 82, 1.695, 32.0, 1, 100 * 1024, 48, 16),
}
REGISTERS, REGISTER_UNIT = 64 * 1024, 256  # of a multiprocessor; of a warp, they come in units
BLOCK_SHARED_BYTES = 1024  # that CUDA takes of each block

#: Cycles until a result is there, by the review of the kernels.
LATENCY = {
    "I2F": 23,
    "F2I": 23,
    "MUFU": 23,
    "LDS": 30,
    "LDSM": 33,
    "LDC": 35,
    "ULDC": 20,
    "S2R": 30,
    "S2UR": 30,
    "R2UR": 12,
    "SHFL": 25,
    "HMMA": 20,
    "LDG": 500,
    "LDGSTS": 600,
}
OTHER_LATENCY = 6
#: Of what the L1 cache has: a shared memory's, with tags.
L1_LATENCY = 35
#: Cycles until operands have been read, at most, and of a barrier.
READ_LATENCY, BARRIER_LATENCY = 25, 20
#: wgmma m64n160k16: 80 cycles of the four tensor cores; its sums arrive so much later.
HGMMA_CYCLES_PER_COLUMN, HGMMA_LATENCY = 0.5, 40

#: Cycles that a warp's instruction takes a unit for. 16 lanes compute integers, 4 special
#: functions and conversions (CUDA C++ Programming Guide, arithmetic instructions).
INTEGER_CYCLES, SPECIAL_CYCLES = 2, 8
SPECIAL = frozenset(("MUFU", "I2F", "F2I", "F2F"))
#: Multiplications of integers go through the unit of float32.
MULTIPLY = frozenset(("IMAD", "HFMA2"))
FLOAT = frozenset(("FADD", "FFMA", "FMUL"))
INTEGER = frozenset(
    ("IADD3", "VIADD", "LOP3", "ISETP", "SEL", "SHF", "LEA", "PRMT", "IABS", "IMNMX", "VIMNMX")
    + ("VIADDMNMX", "PLOP3", "P2R", "R2P", "MOV", "FSEL", "FSETP", "FMNMX", "F2FP", "CS2R")
)
#: Shared memory serves the four schedulers with 128 bytes a cycle, and the L2 cache a
#: multiprocessor with 20: the review has 15.4 MB bind a convolution near 3.5 us on an H100.
L2_BYTES_PER_CYCLE = 20.0


class Timing(NamedTuple):
    """Of a scheduler: cycles, instructions that it issued, and cycles of its tensor cores."""

    cycles: float
    issued: int
    tensor: float


class Cost(NamedTuple):
    """What an instruction takes: of a unit, so many cycles; and until its result, so many. Products
    of warpgroups queue up; all else waits for its unit."""

    unit: str
    taken: float
    latency: float
    l2_bytes: int
    is_queued: bool = False


@cache
def cost(issue: Issue, card: Card) -> Cost:
    instruction, kind = issue.instruction, issue.instruction.kind
    if issue.lanes == 0:  # its predicate is false
        return Cost("", 0, OTHER_LATENCY, 0)
    latency = LATENCY.get(kind, OTHER_LATENCY)
    if kind == "HMMA":
        return Cost("tensor", card.hmma, latency, 0)
    if kind == "HGMMA":
        columns = int(instruction.modifiers[0].split("x")[1])
        return Cost("tensor", HGMMA_CYCLES_PER_COLUMN * columns, HGMMA_LATENCY, 0, True)
    if issue.wavefronts:
        if kind in GLOBAL and not issue.sectors:
            latency = L1_LATENCY
        l2_bytes = SECTOR_BYTES * issue.sectors
        return Cost("memory", SCHEDULERS * issue.wavefronts, latency, l2_bytes)
    if kind in SPECIAL:
        return Cost("special", SPECIAL_CYCLES, latency, 0)
    if kind in MULTIPLY or kind in FLOAT:
        taken = INTEGER_CYCLES if kind in MULTIPLY else card.float32
        return Cost("multiply", taken, latency, 0)
    if kind in INTEGER:
        return Cost("integer", INTEGER_CYCLES, latency, 0)
    return Cost("", 0, latency, 0)


class Track:
    """A warp that is replayed.

    Args:
        block: that it is of.
        issues, costs: what it issues, and what each of those takes.
        start: when its first instruction may issue.
    """

    def __init__(
        self, block: int, issues: Sequence[Issue], costs: Sequence[Cost], start: float
    ) -> None:
        self.block = block
        self.issues = issues
        self.costs = costs
        self.at = 0
        self.ready = self.earliest = start
        self.scoreboards = [0.0] * 6
        self.copies = 0.0  # when those that are in no group yet have arrived
        self.groups: list[float] = []  # when each group of copies has arrived
        self.products = 0.0
        self.product_groups: list[float] = []
        self.is_at_barrier = False

    @property
    def is_done(self) -> bool:
        return self.at == len(self.issues)

    def find_earliest(self) -> None:
        """When its next instruction may issue, but for the units: asked for at every issue of its
        scheduler, it changes with its own alone."""
        if self.is_done:
            return
        instruction = self.issues[self.at].instruction
        control: Control = instruction.control
        time = self.ready
        for scoreboard in control.wait:
            time = max(time, self.scoreboards[scoreboard])
        if instruction.kind == "DEPBAR" and instruction.operands[:1] == ("SB0",):
            time = max(time, arrived(self.groups, int(instruction.operands[1], 16)))
        elif instruction.kind == "WARPGROUP" and "DEPBAR" in instruction.modifiers:
            time = max(time, arrived(self.product_groups, int(instruction.operands[1], 16)))
        self.earliest = time


def arrived(groups: Sequence[float], pending: int) -> float:
    """When all but the `pending` last groups have."""
    return max(groups[: len(groups) - pending], default=0.0)


class Scheduler:
    """One of a multiprocessor's four, with its units."""

    def __init__(self) -> None:
        self.free = {"": 0.0, "issue": 0.0, "l2": 0.0}
        self.tensor = 0.0

    def time_of(self, track: Track) -> float:
        takes = track.costs[track.at]
        time = max(track.earliest, self.free["issue"])
        return time if takes.is_queued else max(time, self.free.get(takes.unit, 0.0))

    def issue(self, track: Track, time: float) -> None:
        issue, takes = track.issues[track.at], track.costs[track.at]
        instruction, control = issue.instruction, issue.instruction.control
        self.free["issue"] = time + 1
        start = max(time, self.free.get(takes.unit, 0.0))
        if takes.unit:
            self.free[takes.unit] = start + takes.taken
        if takes.unit == "tensor":
            self.tensor += takes.taken
        end = start + takes.latency
        if takes.l2_bytes:
            share = SCHEDULERS * takes.l2_bytes / L2_BYTES_PER_CYCLE
            self.free["l2"] = max(time, self.free["l2"]) + share
            end = self.free["l2"] + takes.latency
        if issue.lanes:
            self.follow(track, instruction, start + takes.taken, end)
        if control.write is not None:
            track.scoreboards[control.write] = max(track.scoreboards[control.write], end)
        if control.read is not None:
            read = time + min(takes.latency, READ_LATENCY)
            track.scoreboards[control.read] = max(track.scoreboards[control.read], read)
        track.ready = time + max(1, control.stall)
        track.at += 1
        track.find_earliest()

    @staticmethod
    def follow(track: Track, instruction: Instruction, taken: float, end: float) -> None:
        """Keep when asynchronous copies and products arrive."""
        if instruction.kind == "LDGSTS":
            track.copies = max(track.copies, end)
        elif instruction.kind == "LDGDEPBAR":
            track.groups.append(track.copies)
        elif instruction.kind == "HGMMA":
            track.products = taken + HGMMA_LATENCY
            if "gsb0" in instruction.operands:
                track.product_groups.append(track.products)
        elif instruction.kind == "BAR":
            track.is_at_barrier = True


def replay(warps: Sequence[Sequence[Issue]], blocks: int, resident: int, card: Card) -> Timing:
    """Of one scheduler, which has these warps of each block; so many blocks are there at once, and
    the next one starts when one ends."""
    scheduler, issued, started, end = Scheduler(), 0, 0, 0.0
    costs = [[cost(issue, card) for issue in issues] for issues in warps]
    live: list[Track] = []
    while live or started < blocks:
        if started < blocks and len({track.block for track in live}) < resident:
            live += [Track(started, *of, end) for of in zip(warps, costs, strict=True)]
            started += 1
            continue
        track = min((t for t in live if not t.is_at_barrier), key=scheduler.time_of)
        scheduler.issue(track, scheduler.time_of(track))
        issued += 1
        if track.is_done:
            end = max(end, track.ready)
            live.remove(track)
        if track.is_at_barrier or track.is_done:
            meet([other for other in live if other.block == track.block])
    return Timing(end, issued, scheduler.tensor)


def meet(block: Sequence[Track]) -> None:
    """Let a block's warps go on from a barrier that all of them have come to."""
    if all(track.is_at_barrier for track in block):
        latest = max((track.ready for track in block), default=0.0)
        for track in block:
            track.is_at_barrier, track.ready = False, latest + BARRIER_LATENCY
            track.find_earliest()


class Prediction(NamedTuple):
    """Of a launch on a card.

    resident: blocks that a multiprocessor holds at once. waves: how often the card is filled.
    issue_slots: of the busiest multiprocessor's scheduler, all its blocks. per_load: instructions
    of a warp for each 16 bytes that its lanes load, None if they load none.
    loader_instructions_per_16_bytes: what copying the input takes, as `sass_loader` counts it; None
    but for convolutions of many channels. tensor_share: of the time, for all tensor cores of the
    card. us: predicted.
    """

    resident: int
    waves: float
    issue_slots: int
    per_load: float | None
    loader_instructions_per_16_bytes: float | None
    tensor_share: float
    us: float


def residency(kernel: Kernel, launch: Launch, card: Card) -> int:
    """Blocks that a multiprocessor has room for."""
    shared = launch.shared_bytes + max(kernel.shared, BLOCK_SHARED_BYTES)
    of_warp = -(-kernel.registers * WARP_LANES // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        card.blocks,
        card.warps // launch.warps,
        card.shared_bytes // shared,
        REGISTERS // (of_warp * launch.warps),
    )


def predict(kernel: Kernel, launch: Launch, card: Card) -> Prediction:
    """By the block in the middle of the grid: all blocks are taken to be like it."""
    warps = run(kernel, launch, launch.blocks // 2)
    # The scheduler that has most to issue, on the multiprocessor that has most blocks.
    shares = [warps[first::SCHEDULERS] for first in range(min(SCHEDULERS, len(warps)))]
    share = max(shares, key=lambda share: sum(map(len, share)))
    room = residency(kernel, launch, card)
    blocks = -(-launch.blocks // card.multiprocessors)
    timing = replay(share, blocks, room, card)
    tensor = timing.tensor / blocks * launch.blocks
    loads = sum(loaded16(issue) for warp in warps for issue in warp) / WARP_LANES
    return Prediction(
        resident=min(room, blocks),
        waves=launch.blocks / (room * card.multiprocessors),
        issue_slots=timing.issued,
        per_load=sum(map(len, warps)) / loads if loads else None,
        loader_instructions_per_16_bytes=instructions_per_piece(kernel, launch)
        if "::conv3x3_kernel" in kernel.name  # not Triton's
        else None,
        tensor_share=tensor / (card.multiprocessors * timing.cycles),
        us=timing.cycles / (1000 * card.clock_ghz),
    )


def predictor(card: Card) -> Callable[[Kernel, Launch], Prediction]:
    """`predict` for a card, each kernel and kind of launch once."""
    found: dict[tuple, Prediction] = {}

    def once(kernel: Kernel, launch: Launch) -> Prediction:
        key = (id(kernel), alike(launch))
        if key not in found:
            found[key] = predict(kernel, launch, card)
        return found[key]

    return once


def alike(launch: Launch) -> Launch:
    """The launch without its addresses, which the emulation marks: a word's upper bit is set."""
    words = [launch.parameters[at : at + 8] for at in range(0, len(launch.parameters), 8)]
    marked = [b"pointer." if len(word) == 8 and word[7] & 128 else word for word in words]
    return launch._replace(parameters=b"".join(marked))


def loaded16(issue: Issue) -> int:
    """Lanes that load 16 bytes of global memory."""
    is_load = issue.instruction.kind in ("LDG", "LDGSTS")
    return issue.lanes if is_load and issue.instruction.width == 16 else 0
