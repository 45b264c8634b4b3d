"""The benchmarks on tiny shapes: what they write, and that a wrong result is not timed."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import clsd_fast

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = {"device", "threads", "kernels", "torch", "clsd_fast", "commit", "date"}
SUMMARY = {"ours_ms", "ours_contiguous_ms", "ours_channels_last_ms", "ours_layout", "eager_ms"}
SUMMARY |= {"eager_channels_last_ms", "best_baseline", "ratio_vs_eager", "ratio_vs_best"}
SUMMARY |= {"p20_ms", "p80_ms", "rounds", "correctness"}
TINY_STEP = "--no-compile --threads 1 --channels 8 --patch 8 --blocks 2 --heads 1 --head-blocks 1"
TINY_OPS = "--no-compile --threads 1 --rounds 2"


@pytest.fixture
def load(monkeypatch, threads):
    """Imports a program of the folder; put back: the path and the number of threads."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def ops(load, monkeypatch):
    """benchmarks/ops.py with a table of tiny shapes."""
    module = load("ops")
    table = [
        module.Case("residual_block", (8,), (2, 8, 6, 7)),
        module.Case("pixel_shuffle_upsample", (4, 8), (2, 8, 6, 7)),
        module.Case("upsample_tail", (4, 8), (2, 8, 6, 7)),
        module.Case("conv3x3", (3, 8), (2, 3, 6, 7)),
        module.Case("inference", (3, 2, 8), (1, 3, 9, 8)),
    ]
    monkeypatch.setitem(module.TABLES, "quick", lambda: table)
    return module


def scaled(function):
    """The operator with a result that is off by a tenth of a percent."""
    return lambda *args, **kwargs: 1.001 * function(*args, **kwargs)


def test_step_writes_its_figures(load, monkeypatch, tmp_path):
    path = tmp_path / "step.json"
    # Starting processes takes seconds; test_memory_is_measured_in_a_new_process starts one.
    monkeypatch.setattr(load("measure"), "in_new_process", lambda function, *args: function(*args))
    load("step").main([*TINY_STEP.split(), "--rounds", "2", "--json", str(path)])
    result = json.loads(path.read_text())
    compiled = {"compile_ms", "compile_channels_last_ms"}
    keys = SUMMARY | ENVIRONMENT | compiled | {"peak_memory_mib", "losses", "settings"}
    assert set(result) == keys
    assert result["compile_ms"] is None
    assert result["ours_ms"] == result[f"ours_{result['ours_layout']}_ms"]
    assert result["ratio_vs_eager"] == result["eager_ms"] / result["ours_ms"]
    names = {"ours", "ours_contiguous", "ours_channels_last", "eager", "eager_channels_last"}
    for key in ("p20_ms", "p80_ms", "peak_memory_mib", "losses"):
        assert set(result[key]) == names
    for at in ("first", "last"):
        ours, eager = result["losses"]["ours"][at], result["losses"]["eager"][at]
        assert ours == pytest.approx(eager, rel=1e-3)


def test_step_refuses_a_wrong_result(load, monkeypatch, capsys):
    monkeypatch.setattr(clsd_fast.nn, "residual_block", scaled(clsd_fast.residual_block))
    with pytest.raises(SystemExit, match="training step: expected errors of at most 5 times"):
        load("step").main(TINY_STEP.split())
    assert capsys.readouterr().out == ""


def test_memory_is_measured_in_a_new_process(load):
    step, measure = load("step"), load("measure")
    options = step.parse(TINY_STEP.split())
    growth = measure.in_new_process(step.peak_memory_mib, "ours_channels_last", options)
    assert growth is None or growth > 0


def test_peak_growth_counts_what_is_freed_again(load):
    elements = 16 * 2**20
    growth = load("measure").peak_growth_mib(lambda: torch.ones(elements), torch.device("cpu"))
    if growth is None:
        pytest.skip("needs a writable /proc/self/clear_refs")
    assert growth == pytest.approx(64, abs=2)


@pytest.mark.parametrize("contrast", clsd_fast.distill.CONTRASTS)
def test_step_is_right_for_every_contrast(load, contrast):
    step, measure = load("step"), load("measure")
    options = step.parse([*TINY_STEP.split(), "--contrast", contrast])
    trainers = {name: step.Trainer(name, options) for name in (*step.OURS, "eager")}
    assert step.correctness(trainers, options) <= measure.LIMIT


def test_ops_writes_a_row_for_each_operator_and_mode(ops, tmp_path):
    path = tmp_path / "ops.json"
    ops.main([*TINY_OPS.split(), "--json", str(path)])
    rows = json.loads(path.read_text())
    modes = ("forward", "forward_backward")
    expected = [(op, mode) for op in list(ops.OURS) for mode in modes]
    assert sorted((row["op"], row["mode"]) for row in rows) == sorted(expected[:-1])
    for row in rows:
        fused = row["mode"] == "forward" and torch.backends.mkldnn.is_available()
        onednn = {"onednn_ms", "onednn_channels_last_ms"} if fused else set()
        assert set(row) == SUMMARY | ENVIRONMENT | onednn | {"op", "arguments", "shape", "mode"}


def test_ops_refuses_a_wrong_result(ops, monkeypatch, tmp_path):
    monkeypatch.setattr(clsd_fast.nn, "conv3x3", scaled(clsd_fast.conv3x3))
    path = tmp_path / "ops.json"
    with pytest.raises(SystemExit, match=r"conv3x3\(3, 8\) 2x3x6x7 forward: expected errors"):
        ops.main([*TINY_OPS.split(), "--op", "conv3x3", "--json", str(path)])
    assert not path.exists()


def test_inference_is_checked_on_what_its_piece_of_the_image_determines(ops, monkeypatch):
    monkeypatch.setattr(ops, "CHECKED_SIZE", 14)
    case = ops.Case("inference", (3, 2, 8), (1, 3, 20, 30))
    calls = ops.make_calls(case, "forward", compiled=False)
    reference, eager = (ops.checked_results(case, calls[name]) for name in ("reference", "eager"))
    assert reference[0].shape == (1, 3, 18, 18)
    torch.testing.assert_close(eager[0].double(), reference[0], rtol=1e-4, atol=1e-4)


def test_onednn_computes_the_same(ops):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a PyTorch with oneDNN")
    for case in ops.TABLES["quick"]():
        calls = ops.make_calls(case, "forward", compiled=False)
        for name in ("onednn", "onednn_channels_last"):
            torch.testing.assert_close(calls[name](1), calls["eager"](1), rtol=1e-4, atol=1e-4)


@pytest.fixture
def contrastive(load, monkeypatch):
    """benchmarks/contrastive.py with a table of tiny shapes, in this process."""
    monkeypatch.setattr(load("measure"), "in_new_process", lambda function, *args: function(*args))
    module = load("contrastive")
    metrics = ("cosine", "dot", "l1")
    table = [
        module.Case("info_nce", 3, 5, 8),
        module.Case("info_nce", 1, 9, 8),
        module.Case("distance_ratio_loss", 1, 4, 70),
        *(module.Case("pairwise_similarity", 1, 6, 8, metric) for metric in metrics),
    ]
    monkeypatch.setattr(module, "table", lambda: table)
    return module


TINY_CONTRASTIVE = "--no-compile --threads 1 --rounds 2"


def test_contrastive_writes_a_row_for_each_case(contrastive, tmp_path):
    files = tmp_path / "rows.json", tmp_path / "plot.png"
    arguments = ["--json", str(files[0]), "--plot", str(files[1])]
    contrastive.main([*TINY_CONTRASTIVE.split(), *arguments])
    rows = json.loads(files[0].read_text())
    assert [contrastive.Case(*list(row.values())[:5]) for row in rows] == contrastive.table()
    for row in rows:
        cdist = {"cdist"} if row["op"] == "distance_ratio_loss" else set()
        assert set(row["memory_mib"]) == {"ours", "eager"} | cdist
        assert row["ratio_vs_eager"] == row["eager_ms"] / row["ours_ms"]
        assert set(row) > ENVIRONMENT
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_contrastive_leaves_out_baselines_that_do_not_fit(contrastive, tmp_path):
    path = tmp_path / "rows.json"
    contrastive.main([*TINY_CONTRASTIVE.split(), "--largest-table", "0", "--json", str(path)])
    for row in json.loads(path.read_text()):
        assert row["ours_ms"] > 0 and row["eager_ms"] is None and row["ratio_vs_best"] is None


def test_contrastive_refuses_a_wrong_result(contrastive, monkeypatch):
    monkeypatch.setattr(clsd_fast, "info_nce", scaled(clsd_fast.info_nce))
    with pytest.raises(SystemExit, match="info_nce 3 x 5 x 8: expected errors of at most 5 times"):
        contrastive.main(TINY_CONTRASTIVE.split())


def test_breakdown_times_every_method(load, tmp_path):
    path = tmp_path / "breakdown.json"
    load("step").main([*TINY_STEP.split(), "--rounds", "2", "--breakdown", "--json", str(path)])
    result = json.loads(path.read_text())
    for side in ("ours", "eager"):
        steps = result[side]["ms"]
        assert set(steps) == {"student", "ds", "clsd"}
        assert result[side]["contrastive_share"] == steps["clsd"] / steps["ds"] - 1


@pytest.mark.parametrize("ops_table", ["quick", "full"])
def test_tables_fit_their_modules(load, ops_table):
    module = load("ops")
    for case in module.TABLES[ops_table]():
        with torch.device("meta"):
            x = torch.empty(case.shape)
            assert module.OURS[case.op](*case.arguments)(x).shape[0] == case.shape[0]


def test_a_nan_is_the_worst_error(load):
    measure = load("measure")
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    exact = good.double()
    assert measure.error_over_bound([good], [exact], [good]) == 0
    figure = measure.error_over_bound([good, bad, good], [exact] * 3, [good] * 3)
    assert math.isnan(figure)
    with pytest.raises(SystemExit, match="got nan"):
        measure.gate("test", figure)
