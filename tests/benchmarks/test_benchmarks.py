"""The benchmarks on tiny shapes: what they write, and that a wrong result is not timed."""

import json
import math

import contrastive
import measure
import ops
import pytest
import step
import tolerance
import torch
from cases import contrast, images
from cases import step as training

import clsd_fast

ENVIRONMENT = {"device", "threads", "kernels", "torch", "clsd_fast", "commit", "date"}
SUMMARY = {"ours_ms", "ours_contiguous_ms", "ours_channels_last_ms", "ours_layout", "eager_ms"}
SUMMARY |= {"eager_channels_last_ms", "best_baseline", "ratio_vs_eager", "ratio_vs_best"}
SUMMARY |= {"p20_ms", "p80_ms", "rounds", "correctness"}
TINY_STEP = "--no-compile --threads 1 --channels 8 --patch 8 --blocks 2 --heads 1 --head-blocks 1"
TINY_OPS = "--table tiny --no-compile --threads 1 --rounds 2"


pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def in_this_process(monkeypatch):
    """What takes a new process, without the seconds that it takes to start."""
    monkeypatch.setattr(measure, "in_new_process", lambda function, *args: function(*args))


def scaled(function):
    """The operator with a result that is off by a tenth of a percent."""
    return lambda *args, **kwargs: 1.001 * function(*args, **kwargs)


def test_step_writes_its_figures(in_this_process, tmp_path):
    path = tmp_path / "step.json"
    step.main([*TINY_STEP.split(), "--rounds", "2", "--json", str(path)])
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


def test_step_under_autocast(in_this_process, tmp_path):
    """Ours and theirs, beside ours in float32."""
    path = tmp_path / "step.json"
    step.main([*TINY_STEP.split(), "--dtype", "bf16", "--rounds", "1", "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["ours_float32_channels_last_ms"] > 0
    assert result["best_baseline"].startswith("eager")
    first = {name: at["first"]["total"] for name, at in result["losses"].items()}
    exact = first["ours_float32_channels_last"]
    for name in ("ours", "eager"):
        assert 0 < abs(first[name] - exact) < 0.02 * exact


def test_step_refuses_a_wrong_result(monkeypatch, capsys):
    monkeypatch.setattr(clsd_fast.nn, "residual_block", scaled(clsd_fast.residual_block))
    message = "step, ours_contiguous: expected errors of at most 5 times"
    with pytest.raises(SystemExit, match=message):
        step.main(TINY_STEP.split())
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
def test_memory_is_measured_in_a_new_process():
    (case,) = training.tiny_table()
    growth = measure.in_new_process(step.peak_memory_mib, "ours_channels_last", case, 1)
    assert growth is None or growth > 0


def test_peak_growth_counts_what_is_freed_again():
    elements = 16 * 2**20
    growth = measure.peak_growth_mib(lambda: torch.ones(elements), torch.device("cpu"))
    if growth is None:
        pytest.skip("needs a writable /proc/self/clear_refs")
    assert growth == pytest.approx(64, abs=2)


@pytest.mark.parametrize("contrast", clsd_fast.distill.CONTRASTS)
def test_step_is_right_for_every_contrast(contrast):
    (case,) = training.tiny_table()
    rivals = training.Contest(case._replace(contrast=contrast))
    names = (*training.OURS, "eager_channels_last")
    assert rivals.check({name: rivals.contender(name).results for name in names}) <= measure.LIMIT


def test_ops_writes_a_row_for_each_operator_and_mode(tmp_path):
    path = tmp_path / "ops.json"
    ops.main([*TINY_OPS.split(), "--json", str(path)])
    rows = json.loads(path.read_text())
    modes = ("forward", "forward_backward")
    expected = [(op, mode) for op in images.OURS for mode in modes]
    assert sorted((row["op"], row["mode"]) for row in rows) == sorted(expected[:-1])
    for row in rows:
        fused = row["mode"] == "forward" and torch.backends.mkldnn.is_available()
        onednn = {"onednn_ms", "onednn_channels_last_ms"} if fused else set()
        assert set(row) == SUMMARY | ENVIRONMENT | onednn | {
            "op",
            "arguments",
            "shape",
            "mode",
            "dtype",
        }


def test_ops_times_16_bit_images(tmp_path):
    path = tmp_path / "ops.json"
    options = "--op conv3x3 --dtype bfloat16"
    ops.main([*TINY_OPS.split(), *options.split(), "--json", str(path)])
    assert [row["dtype"] for row in json.loads(path.read_text())] == ["bfloat16"] * 2


def test_ops_refuses_a_wrong_result(monkeypatch, tmp_path):
    monkeypatch.setattr(clsd_fast.nn, "conv3x3", scaled(clsd_fast.conv3x3))
    path = tmp_path / "ops.json"
    with pytest.raises(SystemExit, match=r"conv3x3\(3, 8\) 2x3x6x7 forward, ours_contiguous: "):
        ops.main([*TINY_OPS.split(), "--op", "conv3x3", "--json", str(path)])
    assert not path.exists()


def test_inference_is_checked_on_what_its_piece_of_the_image_determines(monkeypatch):
    monkeypatch.setattr(images, "CHECKED_SIZE", 14)
    case = images.Case("inference", (3, 2, 8), (1, 3, 20, 30))
    reference, eager = images.Contest(case, "forward").expected
    assert reference[0].shape == (1, 3, 18, 18)
    torch.testing.assert_close(eager[0].double(), reference[0], rtol=1e-4, atol=1e-4)


TINY_CONTRASTIVE = "--table tiny --no-compile --threads 1 --rounds 2"


@pytest.mark.thorough
def test_contrastive_writes_a_row_for_each_case(in_this_process, tmp_path):
    files = tmp_path / "rows.json", tmp_path / "plot.png"
    arguments = ["--json", str(files[0]), "--plot", str(files[1])]
    contrastive.main([*TINY_CONTRASTIVE.split(), *arguments])
    rows = json.loads(files[0].read_text())
    assert [contrast.Case(*list(row.values())[:5]) for row in rows] == contrast.tiny_table()
    for row in rows:
        cdist = {"cdist"} if row["op"] == "distance_ratio_loss" else set()
        assert set(row["memory_mib"]) == {"ours", "eager"} | cdist
        assert row["ratio_vs_eager"] == row["eager_ms"] / row["ours_ms"]
        assert set(row) > ENVIRONMENT
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
def test_contrastive_leaves_out_baselines_that_do_not_fit(in_this_process, tmp_path):
    path = tmp_path / "rows.json"
    contrastive.main([*TINY_CONTRASTIVE.split(), "--largest-table", "0", "--json", str(path)])
    for row in json.loads(path.read_text()):
        assert row["ours_ms"] > 0 and row["eager_ms"] is None and row["ratio_vs_best"] is None


def test_contrastive_refuses_a_wrong_result(monkeypatch):
    monkeypatch.setattr(clsd_fast, "info_nce", scaled(clsd_fast.info_nce))
    message = "info_nce 3 x 5 x 8 forward_backward, ours: expected errors of at most 5 times"
    with pytest.raises(SystemExit, match=message):
        contrastive.main(TINY_CONTRASTIVE.split())


def test_breakdown_times_every_method(tmp_path):
    path = tmp_path / "breakdown.json"
    step.main([*TINY_STEP.split(), "--rounds", "2", "--breakdown", "--json", str(path)])
    result = json.loads(path.read_text())
    for side in ("ours", "eager"):
        steps = result[side]["ms"]
        assert set(steps) == {"student", "ds", "clsd"}
        assert result[side]["contrastive_share"] == steps["clsd"] / steps["ds"] - 1


@pytest.mark.parametrize("name", images.TABLES)
def test_tables_fit_their_modules(name):
    for case in images.TABLES[name]():
        with torch.device("meta"):
            x = torch.empty(case.shape)
            assert images.OURS[case.op](*case.arguments)(x).shape[0] == case.shape[0]


def test_a_nan_is_the_worst_error():
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    exact = good.double()
    assert measure.error_over_bound([good], [exact], [good]) == 0
    figure = measure.error_over_bound([good, bad, good], [exact] * 3, [good] * 3)
    assert math.isnan(figure)
    with pytest.raises(SystemExit, match="got nan"):
        measure.gate("test", figure)


def test_the_limit_is_that_of_the_tests():
    assert measure.LIMIT == tolerance.WINOGRAD_FACTOR
