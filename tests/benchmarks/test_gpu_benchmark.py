"""benchmarks/gpu.py on tiny shapes and the CPU: what it checks, counts, writes and leaves out."""

import json

import gpu as program
import gpu_measure
import gpu_ops as ops
import gpu_report
import gpu_step
import measure
import pytest
import torch
from cases import contrast, step

import clsd_fast


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py with tiny shapes and in one process."""
    shape = (2, 16, 6, 7)
    table = {
        "conv3x3": [ops.Convolution("conv3x3", shape, 16)],
        "residual_block": [ops.Convolution("residual_block", shape, 16)],
        "pixel_shuffle_upsample": [ops.Convolution("pixel_shuffle_upsample", shape, 16, 2)],
        "upsample_tail": [ops.Tail(4, shape)],
        "contrastive": [ops.Contrast(contrast.Case("info_nce", 3, 5, 8))],
    }
    monkeypatch.setattr(ops, "table", lambda: table)
    monkeypatch.setattr(measure, "BLOCK_MS", 0.01)

    def run_item(item, options, seconds, write):
        options.product_size, options.copied_bytes = 64, 4096
        options.seconds = options.step_seconds = 0.0
        options.step = step.Case(batch=2, patch=8, blocks=2, channels=8, heads=1, dtype="bf16")
        program.measure_item(item, options, write)

    monkeypatch.setattr(program, "run_item", run_item)
    return program


def without_compilers(gpu, monkeypatch):
    compiling = ("compile", "max_autotune")
    chosen = [i for i in gpu.items() if not any(b.startswith(compiling) for b in i.baselines)]
    monkeypatch.setattr(gpu, "items", lambda: chosen)


@pytest.mark.thorough
def test_report(gpu, monkeypatch, tmp_path, capsys):
    without_compilers(gpu, monkeypatch)
    gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "gpu.json").read_text())
    modes = {
        (row["problem"].split()[0], row["mode"], row["implementation"]) for row in result["rows"]
    }
    names = [("conv3x3", mode) for mode in ("forward", "dgrad", "wgrad", "forward_backward")]
    for op in ("residual_block", "pixel_shuffle_upsample", "upsample_tail", "info_nce"):
        names += [(op, "forward"), (op, "forward_backward")]
    expected = {(*name, side) for name in names for side in ("ours", "cudnn")}
    assert modes == expected | {("step", "step", side) for side in ("ours", "eager")}
    for row in result["rows"]:
        assert row["times_floor"] == row["us"] / row["floor_us"] > 0
        assert row["p20_us"] <= row["us"] <= row["p80_us"] and row["correctness"] <= 5
        assert {"device", "driver", "torch", "commit", "our_kernel", "times_ours"} < set(row)
    assert result["left_out"] == [] and result["ceilings"]["tflops"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("\n| ") == 1 + len(names) + 2
    assert table in capsys.readouterr().out


def test_what_does_not_fit_the_budget_is_named(gpu, tmp_path):
    gpu.main(["--device", "cpu", "--budget", "0", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [entry["item"] for entry in result["left_out"]] == [i.name for i in gpu.items()]
    assert "step 5 against max_autotune: the budget was spent" in (tmp_path / "gpu.md").read_text()


def test_a_wrong_result_is_not_timed(gpu, monkeypatch, tmp_path):
    wrong = clsd_fast.conv3x3
    monkeypatch.setattr(clsd_fast, "conv3x3", lambda *args: 1.1 * wrong(*args))
    monkeypatch.setattr(gpu, "items", lambda: [gpu.Item("conv3x3", ("cudnn",))])
    with pytest.raises(SystemExit, match="expected every item to be timed"):
        gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    timed = {row["mode"] for row in rows if "us" in row}
    assert timed == {"dgrad", "wgrad"}
    errors = [row["error"] for row in rows if "error" in row]
    assert all("expected errors of at most 1 times the bound" in error for error in errors)
    assert "Not timed:" in (tmp_path / "gpu.md").read_text()


def test_an_implementation_that_fails_is_named(gpu, monkeypatch, tmp_path):
    """The others are timed; ours may be among those that fail."""
    failing, works = "cudnn", gpu.op_call

    def op_call(name, **options):
        if name == failing:
            raise ValueError("no such\nalgorithm")
        return works(name, **options)

    monkeypatch.setattr(gpu, "op_call", op_call)
    monkeypatch.setattr(gpu, "items", lambda: [gpu.Item("conv3x3", ("cudnn",))])
    for failing, other in (("cudnn", "ours"), ("ours", "cudnn")):
        with pytest.raises(SystemExit, match="expected every item to be timed"):
            gpu.main(["--device", "cpu", "--output", str(tmp_path)])
        rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
        assert {row["implementation"] for row in rows if "us" in row} == {other}
        errors = {row["error"] for row in rows if "error" in row}
        assert errors == {f"{failing}: ValueError: no such algorithm"}


def test_only_some_items(gpu, tmp_path):
    arguments = ["--device", "cpu", "--output", str(tmp_path), "--only"]
    gpu.main([*arguments, "residual_block against cudnn"])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["item"] for row in rows} == {"residual_block against cudnn, cudnn_graph"}
    with pytest.raises(SystemExit, match="expected a part of one of these names:\nceilings\n"):
        gpu.main([*arguments, "nothing"])


def synthetic(item, implementation, us, times_ours):
    return {
        "item": item,
        "problem": "conv3x3 64 to 64",
        "mode": "forward",
        "implementation": implementation,
        "us": us,
        "times_ours": times_ours,
        "flops": 2_000_000_000,
        "bytes": 8_000_000,
        "our_kernel": "native",
    }


def test_table_of_a_gpu(tmp_path):
    """Columns of CUDA graphs and compilers, from two items; ours are those of the first."""
    first, second = "conv3x3 against cudnn, cudnn_graph", "conv3x3 against compile_graph"
    rows = [
        synthetic(first, "ours", 20.0, 2.5),
        synthetic(first, "ours_graph", 8.0, 1.0),
        synthetic(first, "cudnn", 24.0, 3.0),
        synthetic(first, "cudnn_graph", 12.0, 1.5),
        synthetic(second, "ours", 21.0, 2.1),
        synthetic(second, "ours_graph", 10.0, 1.0),
        synthetic(second, "compile_graph", 11.0, 1.1),
        {"item": second, "problem": "p", "mode": "wgrad", "error": "AssertionError"},
    ]
    environment = {"device": "H", "driver": "1", "torch": "2", "commit": "3"}
    result = {
        "environment": environment,
        "ceilings": {"tflops": 500.0, "terabytes_per_second": 4.0},
        "rows": rows,
        "left_out": [{"item": second, "reason": "the budget was spent", "failed": False}],
    }
    gpu_report.write(tmp_path, result)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert lines[0] == "# H, driver 1, torch 2, commit 3"
    names = "ours | ours graph | cudnn | cudnn graph | compile graph"
    assert f"| problem | mode | kernel | floor | {names} | ours / floor |" in lines
    numbers = "native | 4 | 20 | 8 | 24 (3.00) | 12 (1.50) | 11 (1.10) | 2"
    assert f"| conv3x3 64 to 64 | forward | {numbers} |" in lines
    assert "- p, wgrad: AssertionError" in lines
    assert lines[-1] == f"- {second}: the budget was spent"
    written = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert written[1]["floor_us"] == 4.0 and written[1]["times_floor"] == 2.0


def test_an_item_has_its_own_process(monkeypatch):
    """One that fails is named with what it wrote; one that takes too long is stopped."""
    options = program.parse(["--device", "nothing"])
    with pytest.raises(program.ItemError, match="exit status 1: .*nothing"):
        program.run_item(program.items()[0], options, 60.0, lambda row: None)
    reason = program.run_item(program.items()[0], options, 0.01, lambda row: None)
    assert reason.startswith("stopped")
    monkeypatch.setattr(program, "LONGEST_SECONDS", 0.01)
    with pytest.raises(program.ItemError, match="stopped after 0 s, which it should not take"):
        program.run_item(program.items()[0], options, 60.0, lambda row: None)


@pytest.mark.parametrize("head_blocks, gflop", [(1, 479.3), (5, 675.0)])
def test_flops_of_a_training_step(head_blocks, gflop):
    """Those of the roofline in docs/gpu.md."""
    case = program.STEP._replace(head_blocks=head_blocks)
    assert gpu_step.flops(case) / 1e9 == pytest.approx(gflop, rel=1e-3)


def test_floor():
    ceiling = gpu_measure.Ceilings(790, 4.3)
    assert gpu_measure.floor_us(2_717_908_992, 0, ceiling) == pytest.approx(3.44, abs=0.01)
    assert gpu_measure.floor_us(0, 9_437_184, ceiling) == pytest.approx(2.19, abs=0.01)


def test_operands_of_every_problem_fit():
    for problems in ops.table().values():
        for problem in problems:
            operands = problem.operands(1, "meta")
            for mode in problem.modes:
                assert program.bytes_of(problem.read(mode, operands)) > 0
                call = problem.call("counted", mode, operands)
                assert gpu_measure.flops_of(call) >= 0


@pytest.mark.parametrize("factor, taps", [(2, 8), (3, 11), (4, 18)])
def test_flops_of_a_tail(factor, taps):
    """Of the composed map, thrice forward and backward: those of docs/tail.md."""
    problem = ops.Tail(factor, (2, 5, 6, 7))
    for mode, times in (("forward", 1), ("forward_backward", 3)):
        call = problem.call("counted", mode, problem.operands(1, "meta"))
        expected = times * 2 * 2 * 6 * 7 * 5 * 3 * taps**2
        assert gpu_measure.flops_of(call) == expected


def test_triton_is_timed_beside_native_kernels(gpu, monkeypatch):
    """And held to the same rule first. Only a GPU has it: here, by the CPU's kernels."""
    backends = []

    class Recorded(clsd_fast.use_backend):
        def __init__(self, name):
            backends.append(name)
            super().__init__("auto")

    monkeypatch.setattr(clsd_fast, "use_backend", Recorded)
    monkeypatch.setattr(gpu, "runnable", lambda names, device: [n for n in names if "_" not in n])
    named = [item for item in gpu.items() if "triton" in item.baselines]
    assert [item.what for item in named] == list(gpu.CONVOLUTIONS)
    (problem,) = ops.table()["conv3x3"]
    for mode in problem.modes:
        backends.clear()
        rows = gpu.op_rows(problem, mode, named[0].baselines, torch.device("cpu"), 0.0)
        assert [row["implementation"] for row in rows] == ["ours", "triton"]
        assert len(backends) > 1 and set(backends) == {"triton"}
