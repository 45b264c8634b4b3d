"""Images and configurations that the trainer's tests share."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clsd_train.cli import main
from clsd_train.config import Config

TINY = {
    "model": {"num_blocks": 2, "channels": 8},
    "heads": {"taps": (1, 2), "blocks": 1, "projection_dim": 8},
}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3], different everywhere."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, **sizes: tuple[int, int]) -> Path:
    """NAME.png of noise of each (height, width) in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        Image.fromarray(noise(height, width, seed)).save(folder / f"{name}.png")
    return folder


def tiny_config(tmp_path: Path, output: str = "run", method: str = "clsd", **train) -> Config:
    """A run of seconds on noise, in tmp_path."""
    hr = write_images(tmp_path / "hr", a=(40, 48), b=(36, 32))
    data = {"train": hr, "val": hr, "patch_size": 8, "cache": tmp_path / "cache"}
    options = {"iterations": 6, "batch_size": 2, "save_every": 3, "eval_every": 3, "log_every": 1}
    return Config.model_validate(
        {**TINY, "method": method, "data": data, "train": {**options, **train},
         "output": tmp_path / output}
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    """What another process does, however busy the machine is."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened for 5 minutes")


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file under folder, but for the image cache."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if "cache" not in path.parts}


def refused(capsys: pytest.CaptureFixture, folder: Path, *arguments: object) -> str:
    """The one line on stderr of a command that must exit with 2 and write nothing in folder."""
    before = contents(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert contents(folder) == before
    return lines[0]
