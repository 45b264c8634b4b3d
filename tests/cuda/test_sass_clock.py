"""The model of a multiprocessor, on a few instructions at a time."""

import pytest
import sass_clock
from sass_clock import CARDS
from sass_code import Control, Instruction, Kernel, Launch
from sass_run import Issue

A100, H100 = CARDS["a100"], CARDS["h100"]


def issue(text, *, stall=1, write=None, read=None, wait=(), lanes=32, wavefronts=0, sectors=0):
    name, _, operands = text.partition(" ")
    control = Control(stall, write, read, wait)
    instruction = Instruction(0, "", name, tuple(operands.split(", ")), control)
    return Issue(instruction, lanes, wavefronts, sectors)


def load(scoreboard, **options):
    options = {"wavefronts": 1, "sectors": 4, **options}
    return issue("LDG.E R2, [R0.64]", write=scoreboard, **options)


def cycles(*warps, blocks=1, resident=1, card=A100):
    return sass_clock.replay(warps, blocks, resident, card).cycles


LOADED = sass_clock.LATENCY["LDG"]
#: Of the four schedulers' 128 bytes, at what the L2 cache gives.
MOVED = 4 * 128 / sass_clock.L2_BYTES_PER_CYCLE


def test_a_result_is_waited_for():
    assert cycles([load(0), issue("FADD R2, R2, R2", wait=(0,))]) == pytest.approx(
        MOVED + LOADED + 1
    )


def test_loads_are_under_way_together():
    both = [load(0), load(1), issue("FADD R2, R2, R2", wait=(0, 1))]
    assert cycles(both) == pytest.approx(2 * MOVED + LOADED + 1)
    one_by_one = [load(0), issue("NOP", wait=(0,)), load(1), issue("NOP", wait=(1,))]
    assert cycles(one_by_one) > 2 * LOADED


def test_a_load_whose_predicate_is_false_takes_a_slot():
    assert cycles([load(0, lanes=0, wavefronts=0, sectors=0), issue("NOP", wait=(0,))]) < 10


def test_the_l1_cache_is_nearer():
    hit = [load(0, sectors=0), issue("NOP", wait=(0,))]
    assert cycles(hit) == sass_clock.L1_LATENCY + 1


@pytest.mark.parametrize(
    "name, alone, together",
    [("NOP", 100, 200), ("IADD3 R0, R0, R0, R0", 200, 400), ("FADD R0, R0, R0", 200, 400)],
)
def test_warps_share_slots_and_lanes(name, alone, together):
    """An A100's lanes take half a warp a cycle."""
    warp = [issue(name)] * 100
    assert cycles(warp) == pytest.approx(alone, abs=2)
    assert cycles(warp, warp) == pytest.approx(together, abs=2)


def test_a_stall_leaves_its_slots_to_others():
    warp = [issue("NOP", stall=4)] * 50
    assert cycles(warp) == cycles(warp, warp) - 1 == 200


def test_tensor_cores_are_the_bound():
    timing = sass_clock.replay([[issue("HMMA.16816.F32.BF16 R0, R4, R8, R0")] * 50], 1, 1, A100)
    assert timing.tensor == 50 * A100.hmma == pytest.approx(timing.cycles, rel=0.05)
    assert timing.issued == 50


def test_warpgroup_products_run_beside_the_warp():
    product = issue("HGMMA.64x160x16.F32.BF16 R24, gdesc[UR8], R24, gsb0")
    wait = issue("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    others = [issue("NOP")] * 60
    assert cycles([product, *others], card=H100) == 61
    assert cycles([product, *others, wait], card=H100) == 80 + sass_clock.HGMMA_LATENCY + 1
    assert cycles([product, product, wait], card=H100) == 160 + sass_clock.HGMMA_LATENCY + 1


def test_groups_of_copies():
    """With one group left open, the wait ends with the first."""
    copy = issue("LDGSTS.E.BYPASS.128 [R0], [R2.64]", wavefronts=4, sectors=16)
    group = [copy, issue("LDGDEPBAR")]
    early = cycles([*group, *group * 40, issue("DEPBAR.LE SB0, 0x28")])
    late = cycles([*group, *group * 40, issue("DEPBAR.LE SB0, 0x0")])
    assert late == pytest.approx(early + 40 * 4 * MOVED, rel=0.05)


def test_a_barrier_waits_for_the_block():
    barrier = issue("BAR.SYNC.DEFER_BLOCKING 0x0")
    fast, slow = [barrier, issue("NOP")], [issue("NOP", stall=10)] * 10 + [barrier, issue("NOP")]
    expected = 101 + sass_clock.BARRIER_LATENCY + 1
    assert cycles(fast, slow) == pytest.approx(expected, abs=2)


def test_blocks_follow_each_other_or_overlap():
    waits = [load(0), issue("NOP", wait=(0,))]
    alone = cycles(waits)
    assert cycles(waits, blocks=4) == pytest.approx(4 * alone, rel=0.05)
    assert cycles(waits, blocks=4, resident=2) == pytest.approx(2 * alone, rel=0.1)


@pytest.mark.parametrize(
    "registers, shared_bytes, threads, card, expected",
    [
        (128, 0, 128, A100, 4),  # registers
        (32, 80 * 1024, 128, A100, 2),  # shared memory, 1 KiB of it CUDA's
        (32, 0, 256, CARDS["rtx4090"], 6),  # 48 warps
        (16, 0, 32, CARDS["rtx3090"], 16),  # blocks
    ],
)
def test_residency(registers, shared_bytes, threads, card, expected):
    kernel = Kernel("kernel", card.architecture, [], b"", registers, 0)
    launch = Launch("kernel", (1, 1, 1), (threads, 1, 1), shared_bytes, b"")
    assert sass_clock.residency(kernel, launch, card) == expected
