"""benchmarks/loader.py on tiny images: what it writes, and that the rivals' patches are right."""

import json

import loader
import numpy as np
import pytest
import torch
from support.trainer_util import noise, write_images

from clsd_train.data import Pair

TINY = "model.num_blocks=1 model.channels=4 heads.taps=[1] heads.blocks=1 train.batch_size=2"
TINY += " train.log_every=2 data.patch_size=8 --workers 1 --seconds 0.01 --iterations 4"


def test_loader_writes_its_figures(threads, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "ROUNDS", 1)
    hr = write_images(tmp_path / "hr", a=(40, 48), b=(36, 32))
    path = tmp_path / "loader.json"
    loader.main([f"data.train={hr}", *TINY.split(), "--json", str(path)])
    result = json.loads(path.read_text())
    rates = result["patches_per_second"]
    assert set(rates) == {"ours", "ours_float", "sub_images"} and min(rates.values()) > 0
    assert result["ours_ratio"] == rates["ours"] / rates["sub_images"]
    assert result["ours_float_ratio"] == rates["ours_float"] / rates["sub_images"]
    assert result["overhead"] == result["trainer_ms"] / result["bare_ms"] - 1
    assert (result["images"], result["sub_images"]) == (2, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"hr", "loader.json"}


@pytest.mark.parametrize(("height", "width", "count"), [(20, 24, 1), (360, 270, 2)])
def test_sub_images_give_aligned_patches(tmp_path, height, width, count):
    lr = noise(height, width)
    pair = Pair("a", lr, lr.repeat(2, axis=0).repeat(2, axis=1))
    loader.write_sub_images([pair], 2, tmp_path)
    dataset = loader.SubImages(tmp_path, 2, 12)
    assert len(dataset) == count
    windows = np.lib.stride_tricks.sliding_window_view(lr, (12, 12), axis=(0, 1))
    torch.manual_seed(0)
    for index in [*range(count), *[0] * 8]:
        small, large = dataset[index]
        assert torch.equal(small.repeat_interleave(2, 1).repeat_interleave(2, 2), large)
        assert any(
            (windows == np.rot90(patch, turns, (1, 2))).all((2, 3, 4)).any()
            for patch in (small.numpy(), small.numpy()[:, ::-1])
            for turns in range(4)
        )
