"""The machine code that `sass_run` runs does what the emulated sources do."""

import itertools
import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import sass_code
import sass_loader
import sass_operations
import sass_run
import torch
from emulation import Counts
from sass_code import Control, Instruction, Kernel, Launch


def images(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)


def tails(ops, factor):
    """Of one tail, forward and backward; at x4 of one colour, which is enough to run."""
    stage, last = images(32, 16, 3, 3).float(), images(1 if factor == 4 else 3, 8, 3, 3).float()
    second = images(32, 8, 3, 3).float() if factor == 4 else None
    x, bias = images(2, 16, 5, 9), torch.zeros(32)
    parameters = (stage, bias, second, None, last)
    output, composed = ops.upsample_tail(x, *parameters, None, factor)
    ops.upsample_tail_backward(output, x, composed, *parameters, factor, True, True)


def shifted_tails(ops):
    """The same of two with a shift behind them."""
    stage, last = images(32, 16, 3, 3).float(), images(3, 8, 3, 3).float()
    xs = [images(1, 16, 5, 9)] * 2
    parameters = ([stage] * 2, [torch.zeros(32)] * 2, [], [], [last] * 2)
    shift = torch.zeros(3, 3, 1, 1)
    outputs, composed = ops.upsample_tails(xs, *parameters, [], shift, torch.zeros(3), 2)
    ops.upsample_tails_backward(outputs, xs, composed, *parameters, shift, 2, True, True)


def losses(ops):
    target, image = (images(1, 3, 5, 7).float() for _ in range(2))
    grads = ops.l1_losses(target, [image] * 3, 255.0)
    ops.l1_losses_backward(*grads, target, [image] * 3, 255.0)


def calls(ops):
    """A call of every kernel, with bias, residual, mask and channels that do not fill a group."""
    x, narrow, odd, fewer = (images(1, channels, 5, 7) for channels in (64, 3, 80, 48))
    wide, tall, five = images(48, 80, 3, 3), images(1, 64, 144, 3), images(5, 64, 5, 7)
    weight, first, last = images(64, 64, 3, 3), images(64, 3, 3, 3), images(3, 64, 3, 3)
    bias = torch.zeros(64, dtype=torch.bfloat16)
    block = (weight, bias, weight, bias, 1.0)
    return {
        "conv3x3": partial(ops.conv3x3, x, weight, bias, x, 0.5, True),
        "odd channels": partial(ops.conv3x3, odd, wide, None, None, 1.0, False),
        "odd backward": partial(ops.conv3x3_backward, fewer, odd, wide, 1.0, True, False, False),
        "backward": partial(ops.residual_block_backward, x, x, x, weight, weight, 0.5, True, True),
        "tall backward": partial(ops.conv3x3_backward, tall, tall, weight, 1.0, False, True, True),
        "one kernel": partial(ops.residual_block, x, *block, False),
        "from few": partial(ops.conv3x3, narrow, first, bias, None, 1.0, False),
        "few backward": partial(ops.conv3x3_backward, x, narrow, first, 1.0, True, True, True),
        "to few": partial(ops.conv3x3, x, last, None, None, 1.0, False),
        "to few backward": partial(ops.conv3x3_backward, narrow, x, last, 1.0, True, True, True),
        "three tiles": partial(ops.conv3x3, five, weight, bias, five, 0.5, True),
        "several": partial(ops.conv3x3s, [x] * 2, [weight] * 2, [bias] * 2, x),
        "several backward": partial(
            ops.conv3x3s_backward, [x] * 2, [x] * 2, [weight] * 2, True, True, True
        ),
        "losses": partial(losses, ops),
        "tail x2": partial(tails, ops, 2),
        "tail x4": partial(tails, ops, 4),
        "shifted tails": partial(shifted_tails, ops),
    }


#: Above an address, the emulation has the number of the tensor.
ADDRESS_BITS = np.uint64(48)
CALLS = tuple(calls(torch.ops.clsd_fast))
#: Multiprocessors for which blocks of three tiles are chosen.
FEW = 2
#: Architectures of one kind have nearly the same code, and all of them of tails. Those take long:
#: one call runs the kernels of 16-bit images, one what composes, and one the kernels of float32
#: images, which only a shift has.
TAILS = {"tail x2": "sm_80", "tail x4": "sm_90a", "shifted tails": "sm_80"}
RUN_OF_TAILS = {
    "tail x2": "lay_out|prepare|forward|images|weights_gradient|reduce",
    "tail x4": "products|compose|prepare|stage|sum|reduce",
    "shifted tails": "float",
}
CASES = [
    *itertools.product(("sm_80", "sm_90a"), [call for call in CALLS if call not in TAILS]),
    *((architecture, call) for call, architecture in TAILS.items()),
    ("sm_86", "conv3x3"),
    ("sm_89", "odd backward"),
]


@pytest.fixture
def recorded(emulation):
    """The launches of a call on an architecture, each kernel once, with the emulation's counts."""

    def launches(architecture, name):
        emulation.sm90a(architecture == "sm_90a")
        emulation.multiprocessors(FEW if name == "three tiles" else 20)
        with emulation.recorded() as found:
            calls(emulation.ops)[name]()
        kernels = {launch.kernel: (launch, counts) for launch, counts in found}
        return [kernels[k] for k in kernels if re.search(RUN_OF_TAILS.get(name, ""), k)]

    return launches


def counted(issues):
    """Counts of what warps have issued: each of a warpgroup's four issues its product."""
    counts = Counter()
    for issue in issues:
        instruction, size = issue.instruction, issue.instruction.width
        counts["mma"] += instruction.kind == "HMMA" and issue.lanes > 0
        counts["wgmma"] += (instruction.kind == "HGMMA" and issue.lanes > 0) / 4
        counts["loads16"] += (instruction.kind in ("LDG", "LDGSTS") and size == 16) * issue.lanes
        counts["stores16"] += (instruction.kind == "STG" and size == 16) * issue.lanes
    return Counts(**counts)


@pytest.mark.parametrize("architecture, name", CASES)
def test_counts_and_stores(binaries, recorded, architecture, name):
    """Products, loads and stores of 16 bytes are those of the emulation. In each tensor, a launch
    writes one region, every byte once: addresses that go astray would leave gaps."""
    for launch, counts in recorded(architecture, name):
        if launch.blocks > 100:  # sums partials, with neither products nor 16 bytes at once
            assert counts == Counts(0, 0, 0, 0)
            continue
        stores = []

        def visit(instruction, operand, addresses, stores=stores):
            if instruction.kind == "STG":
                stores.append((addresses, instruction.width))

        kernel, issues = binaries(architecture)[launch.kernel], []
        for block in range(launch.blocks):
            for warp in sass_run.run(kernel, launch, block, visit):
                issues += warp
        assert counted(issues) == counts, launch.kernel
        written = np.concatenate([all_bytes(*store) for store in stores])
        for tensor in np.unique(written >> ADDRESS_BITS):
            region = written[written >> ADDRESS_BITS == tensor]
            assert len(region) == len(np.unique(region)) == region.max() - region.min() + 1


def all_bytes(addresses, size):
    return np.add.outer(addresses, np.arange(size, dtype=np.uint64)).ravel()


def test_every_kernel_is_run(binaries, recorded):
    """On one architecture or the other."""

    def kind(name):  # whatever is done with the sums
        return re.sub(r"\(Finish\)\d", "finish", name)

    run = {kind(launch.kernel) for case in CASES for launch, _ in recorded(*case)}
    assert run == {kind(name) for name in binaries("sm_90a").symbols if "Fp16" not in name}


def run(code, parameters=b"", launch=None):
    """What a warp issues, and its registers, by the names of instructions and operands."""
    instructions = [
        Instruction(16 * i, *parse(text), Control(1, None, None, ())) for i, text in enumerate(code)
    ]
    kernel = Kernel("kernel", "sm_80", instructions, b"", 32, 0)
    launch = launch or Launch("kernel", (1, 1, 1), (32, 1, 1), 0, parameters)
    addresses = []
    warps = sass_run.run(kernel, launch, 0, lambda i, operand, a: addresses.append(a))
    return warps[0], addresses


def parse(text):
    guard, _, text = text.rpartition(" @")
    name, _, operands = text.partition(" ")
    return guard, name, tuple(operands.split(", ")) if operands else ()


def test_diverged_lanes_take_turns_and_meet():
    """A loop that each lane leaves after as many turns as its number: 32 turns, and lane 31 alone
    stores before all meet."""
    issues, (stored, met) = run(
        [
            "S2R R0, SR_TID.X",
            "BSSY B0, 0x60",
            "ISETP.LT.AND P0, PT, R0, 0x1, PT",
            "IADD3 R0, R0, -0x1, RZ",
            "P0 @BRA 0x60",
            "BRA 0x20",
            "BSYNC B0",
            "STG [R0.64], R2",
            "S2R R4, SR_LANEID",
            "ISETP.EQ.AND P1, PT, R4, 0x1f, PT",
            "P1 @STG [R4.64], R2",
            "EXIT",
        ]
    )
    turns = [issue.lanes for issue in issues if issue.instruction.address == 0x20]
    assert turns == list(range(32, 0, -1))
    assert (len(stored), list(met)) == (32, [31])


@pytest.mark.parametrize("divisor", [1, 3, 7, 640, 2**31 - 1])
def test_division(divisor):
    """The compiler's sequence for unsigned numbers, of the lanes' numbers times 2^26."""
    code = [
        "S2R R6, SR_TID.X",
        "IMAD.SHL.U32 R6, R6, 0x4000000, RZ",
        f"MOV R7, {divisor:#x}",
        "I2F.U32.RP R0, R7",
        "MUFU.RCP R0, R0",
        "IADD3 R2, R0, 0xffffffe, RZ",
        "F2I.FTZ.U32.TRUNC.NTZ R3, R2",
        "MOV R2, RZ",
        "IADD3 R5, RZ, -R3, RZ",
        "IMAD R5, R5, R7, RZ",
        "IMAD.HI.U32 R3, R3, R5, R2",
        "IMAD.HI.U32 R3, R3, R6, RZ",
        "IADD3 R4, -R3, RZ, RZ",
        "IMAD R4, R7, R4, R6",
        "ISETP.GE.U32.AND P0, PT, R4, R7, PT",
        "P0 @IMAD.IADD R4, R4, 0x1, -R7",
        "P0 @IADD3 R3, R3, 0x1, RZ",
        "ISETP.GE.U32.AND P1, PT, R4, R7, PT",
        "P1 @IADD3 R3, R3, 0x1, RZ",
        "MOV R4, RZ",
        "STG [R3], R0",
        "EXIT",
    ]
    _, (quotients,) = run(code)
    assert list(quotients) == [(lane << 26) // divisor for lane in range(32)]


def test_parameters_and_wide_numbers():
    """A pointer and a negative 64-bit distance, added with carries, and scaled by LEA."""
    parameters = (0x7F00FFFFFFF0).to_bytes(8, "little") + (-3).to_bytes(8, "little", signed=True)
    _, (added, scaled) = run(
        [
            "MOV R2, c[0x0][0x168]",
            "IADD3 R4, P0, R2, c[0x0][0x160], RZ",
            "MOV R3, c[0x0][0x16c]",
            "IADD3.X R5, R3, c[0x0][0x164], RZ, P0, !PT",
            "STG [R4.64], R0",
            "LEA R4, P1, R2, c[0x0][0x160], 0x4",
            "LEA.HI.X R5, R2, c[0x0][0x164], R3, 0x4, P1",
            "STG [R4.64+0x8], R0",
            "EXIT",
        ],
        parameters,
    )
    assert (added[0], scaled[0]) == (0x7F00FFFFFFF0 - 3, 0x7F00FFFFFFF0 - 3 * 16 + 8)


def test_what_a_loader_depends_on():
    """Of the copy of the input: the thread's number, its addresses, a predicate that was written
    twice, in different lanes, and the guard; not what only the other copy needs, or what was
    overwritten."""
    code = [
        "S2R R0, SR_LANEID",
        "MOV R2, 0x7",
        "MOV R2, c[0x0][0x160]",
        "MOV R3, c[0x0][0x164]",
        "ISETP.GE.AND P0, PT, R0, 0x8, PT",
        "ISETP.GE.AND P1, PT, R0, 0x10, PT",
        "P0 @ISETP.LT.AND P1, PT, R0, 0x14, PT",
        "MOV R6, c[0x0][0x168]",
        "MOV R7, c[0x0][0x16c]",
        "IMAD R8, R0, 0x10, RZ",
        "P0 @LDGSTS.E.BYPASS.128 [R8], [R2.64], P1",
        "LDGSTS.E.BYPASS.128 [R8], [R6.64]",
        "EXIT",
    ]
    instructions = [
        Instruction(16 * i, *parse(text), Control(1, None, None, ())) for i, text in enumerate(code)
    ]
    kernel = Kernel("kernel", "sm_80", instructions, b"", 32, 0)
    pointers = b"".join((1 << 63 | number << 48).to_bytes(8, "little") for number in (3, 5))
    launch = Launch("kernel", (1, 1, 1), (32, 1, 1), 0, pointers)
    copies = sass_loader.copies_of(kernel, launch, 0)
    assert copies.pieces == 24
    loader = [i for i in range(len(code)) if copies.loader >> i & 1]
    assert loader == [0, 2, 3, 4, 5, 6, 9, 10]
    assert sass_loader.instructions_per_piece(kernel, launch) == 8 * 32 / 24


def test_an_unknown_instruction_is_an_error():
    with pytest.raises(ValueError, match="expected a known instruction"):
        run(["FROB R0, R1", "EXIT"])


def test_an_endless_loop_is_an_error(monkeypatch):
    monkeypatch.setattr(sass_run, "MOST_ISSUES", 100)
    with pytest.raises(RuntimeError, match="expected an end within 100 instructions"):
        run(["BRA 0x0"])


@pytest.mark.parametrize("lane, addresses", [("RZ", [0] * 32), ("0x5", [80] * 32), ("R1", None)])
def test_shuffles(lane, addresses):
    """From a lane's register to all; R1 names each lane's left neighbour."""
    code = [
        "S2R R0, SR_LANEID",
        "IADD3 R1, R0, 0x1f, RZ",
        "IMAD R2, R0, 0x10, RZ",
        f"SHFL.IDX PT, R3, R2, {lane}, 0x1f",
        "STG [R3], R0",
        "EXIT",
    ]
    _, (stored,) = run(code)
    assert list(stored) == (addresses or [16 * ((i + 31) % 32) for i in range(32)])


def test_bank_conflicts():
    """Rows of 128 bytes: all lanes read one bank, or, skewed by the row, each its own."""
    code = ["S2R R0, SR_LANEID", "IMAD R0, R0, {}, RZ", "LDS R1, [R0]", "EXIT"]
    for stride, wavefronts in (("0x80", 32), ("0x84", 1), ("0x8", 2), ("0x0", 1)):
        issues, _ = run([line.format(stride) for line in code])
        assert issues[2].wavefronts == wavefronts


def test_the_l1_cache_keeps_what_was_loaded():
    code = ["S2R R0, SR_LANEID", "IMAD R0, R0, 0x10, RZ", "MOV R1, RZ"]
    code += ["LDG.E.128 R4, [R0.64]"] * 2 + ["STG.E.128 [R0.64], R4", "EXIT"]
    issues, _ = run(code)
    assert [(i.sectors, i.wavefronts) for i in issues[3:6]] == [(16, 4), (0, 4), (16, 4)]


def test_control_bits():
    """From an encoding's upper half: stall 5, scoreboard 1 written, 2 read, 0 and 3 waited for."""
    bits = 5 | 1 << 5 | 2 << 8 | 0b001001 << 11
    listing = f"""
arch = sm_80
		Function : kernel
        /*0000*/              @!P0 LDG.E R4, [R2.64+0x20] ;   /* 0x0000000402047981 */
                                                              /* 0x{bits << 41:016x} */
        /*0010*/                   EXIT ;                     /* 0x000000000000794d */
                                                              /* 0x{(7 << 5 | 7 << 8) << 41:016x} */
"""
    load, end = sass_code.functions(listing)["sm_80", "kernel"]
    assert load == (0, "!P0", "LDG.E", ("R4", "[R2.64+0x20]"), Control(5, 1, 2, (0, 3)))
    assert end == (16, "", "EXIT", (), Control(0, None, None, ()))


def test_constant_banks():
    sections = ".nv.constant2.kernel\n0x00000008 0x00000001 \n\n.nv.constant0.kernel\n0x00000002\n"
    assert sass_code.constants(sections) == {"kernel": bytes([8, 0, 0, 0, 1, 0, 0, 0])}


@pytest.mark.parametrize(
    "code, expected", [(0x3C, 0b0110), (0xC0, 0b1000), (0xFC, 0b1110), (0x33, 0b0101)]
)
def test_bitwise_tables(code, expected):
    """Of a = 1100 and b = 1010: exclusive or, and, or, not b."""
    a, b, c = (np.uint64(x) for x in (0b1100, 0b1010, 0))
    assert int(sass_operations.table(code, a, b, c)) & 0b1111 == expected
