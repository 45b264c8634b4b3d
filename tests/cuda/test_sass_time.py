"""Budgets of the CUDA kernels in the model of `sass_time`, and its reports."""

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module

import native_build
import pytest
import torch
from sass_clock import BLOCK_SHARED_BYTES, CARDS, Prediction, alike, predictor

#: Issue slots and predicted microseconds of today's kernels, which no change may exceed, by card
#: and call; the launches of a call in turn.
PACK = (500, 1.0)
BUDGETS = {
    ("h100", "conv3x3"): [PACK, (1_360, 5.7)],
    ("h100", "residual"): [PACK, (1_800, 6.2)],
    ("h100", "backward"): [(500, 1.7), (1_800, 6.4), (1_800, 6.2), (5_870, 11.5), (5_390, 5.0)],
    ("h100", "section"): [
        (1_490, 1.8),
        *[(1_800, 6.4), (1_800, 6.2)] * 6,
        (1_800, 6.4),
        (2_050, 6.5),
        *[(1_800, 6.4), (1_800, 6.2)],
        (28_000, 53.9),
        (3_340, 7.2),
    ],
    ("h100", "tails"): [
        *[(7_500, 8.5), (4_620, 3.9), (25_500, 41.8)],
        *[(3_510, 2.7), (21_500, 33.0), (20_100, 34.5), (1_900, 3.5), (16_400, 17.7), (610, 1.4)],
    ],
    ("h100", "shifted tails"): [
        *[(8_700, 10.6), (4_620, 3.9), (25_900, 45.9)],
        *[(3_510, 2.7), (21_500, 33.5), (20_100, 34.5), (1_900, 3.5), (16_400, 17.7), (610, 1.4)],
    ],
    ("h100", "from few"): [PACK, (1_620, 2.5)],
    ("h100", "few backward"): [(510, 1.7), (2_030, 4.7), (7_450, 8.2), (580, 1.6)],
    ("a100", "conv3x3"): [(500, 1.2), (3_490, 12.9)],
    ("a100", "residual"): [(500, 1.2), (4_080, 13.6)],
    ("a100", "backward"): [(500, 2.0), (4_080, 13.6), (4_080, 13.6), (8_810, 26.9), (6_430, 6.3)],
    ("a100", "section"): [
        (1_500, 2.2),
        *[(4_080, 13.6)] * 13,
        (4_380, 13.9),
        *[(4_080, 13.6)] * 2,
        (58_900, 186.6),
        (3_710, 8.2),
    ],
    ("rtx4090", "conv3x3"): [(500, 0.9), (4_380, 24.0)],
    ("rtx4090", "residual"): [(500, 0.9), (4_980, 24.3)],
}


def images(*shape):
    return torch.empty(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)


def tails_backward(ops, *shift):
    """The tails of a student and three heads, forward and backward, with float32 parameters."""
    stage, last = images(256, 64, 3, 3).float(), images(3, 64, 3, 3).float()
    xs, weights, out_weights = [images(16, 64, 48, 48)] * 4, [stage] * 4, [last] * 4
    biases, out_biases = [stage[:, 0, 0, 0]] * 4, [last[:, 0, 0, 0]] * 4
    parameters = (weights, biases, [], [], out_weights)
    outputs, composed = ops.upsample_tails(xs, *parameters, out_biases, *shift, 2)
    ops.upsample_tails_backward(outputs, xs, composed, *parameters, shift[0], 2, True, True)


def calls(ops):
    """Layers of a training step of batch 16, patch 48."""
    x, narrow, bias = images(16, 64, 48, 48), images(16, 3, 48, 48), torch.empty(64).bfloat16()
    weight, first = images(64, 64, 3, 3), images(64, 3, 3, 3)
    block = ops.residual_block_backward
    maps, weights = [x] * 7, [weight.float()] * 8
    return {
        "section": partial(
            ops.residual_blocks_backward,
            *([x, x], [1, 8], [x], maps, [x] * 8, weights, weights, 1.0, True, True),
        ),
        "conv3x3": partial(ops.conv3x3, x, weight, bias, None, 1.0, True),
        "residual": partial(ops.conv3x3, x, weight, bias, x, 1.0, False),
        "backward": partial(block, x, x, x, weight, weight, 1.0, True, True),
        "tails": partial(tails_backward, ops, None, None),
        "shifted tails": partial(tails_backward, ops, torch.ones(3, 3, 1, 1), torch.ones(3)),
        "from few": partial(ops.conv3x3, narrow, first, bias, None, 1.0, False),
        "few backward": partial(ops.conv3x3_backward, x, narrow, first, 1.0, True, True, True),
    }


@pytest.mark.parametrize("card, call", BUDGETS)
def test_budgets(binaries, emulation, card, call):
    emulation.sm90a(card == "h100")
    emulation.multiprocessors(CARDS[card].multiprocessors)
    emulation.block_shared_bytes(CARDS[card].shared_bytes - BLOCK_SHARED_BYTES)
    with emulation.recorded(runs=False) as launches:
        calls(emulation.ops)[call]()
    binary, predict = binaries(CARDS[card].architecture), predictor(CARDS[card])
    found = [predict(binary[launch.kernel], launch) for launch, _ in launches]
    for prediction, (slots, us) in zip(found, BUDGETS[card, call], strict=True):
        assert prediction.issue_slots <= slots, found
        assert prediction.us <= us, found


@pytest.mark.parametrize("card", ["h100", "a100"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_loader_takes_8_instructions_per_16_bytes(binaries, emulation, card, residual):
    emulation.sm90a(card == "h100")
    emulation.multiprocessors(CARDS[card].multiprocessors)
    x, weight = images(16, 64, 48, 48), images(64, 64, 3, 3)
    with emulation.recorded(runs=False) as launches:
        skip = x.clone() if residual else None
        emulation.ops.conv3x3(x, weight, None, skip, 1.0, False)
    launch = launches[-1][0]
    kernel = binaries(CARDS[card].architecture)[launch.kernel]
    prediction = predictor(CARDS[card])(kernel, launch)
    assert prediction.loader_instructions_per_16_bytes <= 8


@pytest.fixture(scope="module")
def sass_time():
    """The program, which imports Triton."""
    pytest.importorskip("triton")
    return import_module("sass_time")


STEP = """
import json, sys
import emulation, native_build, sass_step
loaded = emulation.Emulation(native_build.build_emulation())
hopper = emulation.Gpu((9, 0), 132)
step = sass_step.record(loaded, hopper, int(sys.argv[1]), batch=2, patch_size=8)
casts = sum(call.name in ("_to_copy", "copy_") for call in step.aten)
operators = sass_step.operators(loaded, emulation.Gpu((8, 0))).items()
print(json.dumps([
    [step.launches, len(step.native), len(step.triton), casts],
    {title: [launch.kernel for launch in launches] for title, launches in operators},
]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "head_blocks, launches, native, triton, casts", [(5, 161, 127, 3, 1), (1, 137, 103, 3, 1)]
)
def test_launches_of_a_step(emulated_library, head_blocks, launches, native, triton, casts):
    """At full depth, on tiny images, in a process of its own: a budget, too. And those of single
    operators. Nothing casts a parameter or its gradient: the cast is of the input."""
    pytest.importorskip("triton")
    folders = [str(native_build.ROOT / "tools"), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    environment.pop("TRITON_INTERPRET", None)
    found = subprocess.run(
        [sys.executable, "-c", STEP, str(head_blocks)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    counts, operators = json.loads(found.stdout.splitlines()[-1])
    assert all(map(int.__le__, counts, (launches, native, triton, casts))), counts
    pack, whole = "pack_kernel<Bf16>", "[16, 64, 48, 48]"
    # kNone, kRelu and kResidual of csrc/cuda/epilogue.cuh.
    plain, relu, residual = (f"trio::conv3x3_kernel<Bf16, (Finish){i}>" for i in (0, 1, 3))
    assert operators[f"conv3x3 64 to 64, {whole}, forward"] == [pack, plain]
    assert operators[f"residual_block 64 to 64, {whole}, forward"] == [pack, relu, residual]
    assert operators["small residual_block 64 to 64, [1, 64, 24, 48], forward"] == [
        pack,
        "residual::residual_block_kernel<Bf16>",
    ]


def row(sass_time, kernel, calls, us):
    return sass_time.Row(kernel, 128, calls, Prediction(1, 0.5, 8000, None, 7.9, 0.25, us))


def test_the_slowest_launch_of_a_kernel_counts(sass_time):
    """Of those in the step, if there is one."""
    of = partial(row, sass_time)
    kernels = sass_time.slowest(
        [of("a", 2, 13.0), of("a", 3, 11.0), of("a", 0, 30.0), of("b", 0, 5.0)]
    )
    assert kernels["a"]["predicted_us"] == 13.0
    assert kernels["a"]["calls"] == 5
    assert kernels["b"]["issue_slots"] == 8000
    assert kernels["b"]["tensor_share"] == 0.25


def test_table(sass_time):
    text = sass_time.table(
        CARDS["h100"], [row(sass_time, "sm90::conv3x3_kernel<Bf16, false>", 35, 13.46)]
    )
    assert "model, not measurement" in text
    fields = ["128", "1", "0.50", "8000", "-", "7.9", "25%", "13.46"]
    assert text.splitlines()[2].split()[-8:] == fields


def measurement(problem, mode, implementation, us):
    return {"problem": problem, "mode": mode, "implementation": implementation, "us": us}


def test_measured_times_stand_beside(sass_time, tmp_path):
    """Those of that card, from a CUDA graph where there is one."""
    conv = "conv3x3 64 to 64, [16, 64, 48, 48]"
    rows = [
        measurement("step 5", "step", "ours_graph", 2500.0),
        measurement("step 5", "step", "ours", 9500.0),
        measurement("step 5", "step", "eager", 12000.0),
        measurement(conv, "forward", "ours", 8.5),
        {"problem": conv, "mode": "dgrad", "error": "failed"},
    ]
    (tmp_path / "gpu.json").write_text(
        json.dumps({"environment": {"device": "NVIDIA H100 80GB HBM3"}, "rows": rows})
    )
    (tmp_path / "other.json").write_text(json.dumps([{"rows": None}]))
    result = {
        "step_ms": {"h100_n5": 4.8, "h100_n1": 3.5, "a100_n5": 9.0, "a100_n1": 7.0},
        "launches": {"n5": 763, "n1": 595},
        "operators_us": {key: {f"{conv}, forward": 11.1} for key in ("h100", "a100")},
    }
    lines = [line.split() for line in sass_time.comparison(result, tmp_path).splitlines()]
    assert ["step", "5,", "step", "4800.0", "2500.0"] in lines
    assert ["step", "1,", "step", "3500.0", "-"] in lines
    assert [*f"{conv}, forward".split(), "11.1", "8.5"] in lines
    assert [*f"{conv}, forward".split(), "11.1", "-"] in lines
    assert lines[-1] == ["launches", "of", "a", "step:", "n5", "763,", "n1", "595"]


def test_launches_that_differ_in_addresses_are_alike(emulation):
    """And those that differ in what is given, or in a number, are not."""
    x, weight = images(1, 16, 3, 4), images(16, 16, 3, 3)

    def launch(residual, scale):
        with emulation.recorded(runs=False) as launches:
            emulation.ops.conv3x3(x.clone(), weight, None, residual, scale, False)
        return alike(launches[-1][0])

    assert launch(None, 1.0) == launch(None, 1.0)
    assert launch(x, 1.0) == launch(x.clone(), 1.0)
    assert len({launch(None, 1.0), launch(x, 1.0), launch(None, 0.5)}) == 3


def test_unknown_cards(sass_time, capsys):
    with pytest.raises(SystemExit):
        sass_time.main(["--cards", "h100,k80"])
    assert "expected --cards of h100, a100, rtx4090, rtx3090, got k80" in capsys.readouterr().err
