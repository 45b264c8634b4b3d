"""The benchmark of accelerated networks on tiny ones."""

import json

import dropin
import pytest
import torch.nn.functional as F

from clsd_fast._accelerate import convs

TINY = ["--shallow", "--channels=16", "--patch=8", "--batch=1", "--rounds=1", "--threads=1"]

pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize(
    "names", [("EDSR",), pytest.param(tuple(dropin.ZOO), marks=pytest.mark.thorough)]
)
def test_it_writes_its_figures(native, tmp_path, names, capsys):
    path = tmp_path / "dropin.json"
    dropin.main([*TINY, "--json", str(path), "--only", *names])
    result = json.loads(path.read_text())
    assert [row["network"] for row in result["rows"]] == list(names)
    for row in result["rows"]:
        ours = ("eager", "ours", *(["edsr"] if row["network"] == "EDSR" else []))
        expected = {f"{key}_{layout}" for key in ours for layout in ("contiguous", "channels_last")}
        assert set(row["median_ms"]) == expected
        assert (row["share_of_our_edsr"] is None) == (row["network"] != "EDSR")
        median = row["median_ms"]
        assert row["ratio_as_it_is"] == median["eager_contiguous"] / median["ours_contiguous"]
    assert "of clsd_fast.EDSR's time" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(native, monkeypatch):
    """One that verifying took for rounding, too."""
    monkeypatch.setattr(convs, "conv3x3", lambda x, *args: 1.0003 * F.conv2d(x, *args, padding=1))
    with pytest.raises(SystemExit, match="CARN: expected errors of at most 5 times the bound, got"):
        dropin.main([*TINY, "--only", "CARN"])
