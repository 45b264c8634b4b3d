"""benchmarks/ncnn_inference.py on a tiny image, where ncnn is installed."""

import json

import pytest

pytest.importorskip("ncnn")

import ncnn_inference


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_writes_its_figures(threads, tmp_path, scale):
    path = tmp_path / "ncnn.json"
    ncnn_inference.main([f"--scale={scale}", "--size=64", "--rounds=1", f"--json={path}"])
    result = json.loads(path.read_text())
    assert result["ratio_vs_best"] == result["ncnn_ms"] / result["ours_ms"]
    assert 0 < result["errors"]["ncnn"] < 5 and result["best_baseline"] == "ncnn"


def test_a_wrong_engine_is_not_timed(threads, monkeypatch):
    def shifted(engine, image, call=ncnn_inference.Engine.__call__):
        return call(engine, image) + 0.01

    monkeypatch.setattr(ncnn_inference.Engine, "__call__", shifted)
    with pytest.raises(SystemExit, match="ncnn: expected errors of at most 5 times the bound"):
        ncnn_inference.main(["--size=64", "--rounds=1"])
