"""Several processes train as one does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import rank_runs
from support.trainer_util import write_images

from clsd_train.history import read_history


def run_program(folder, *arguments):
    write_images(folder / "hr", a=(40, 48), b=(36, 32), c=(30, 32))
    command = [sys.executable, rank_runs.__file__, str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_program(folder)
    return json.loads((folder / "results.json").read_text()) | {"folder": folder}


@pytest.mark.parametrize("name", rank_runs.CASES)
def test_two_ranks_train_as_one(results, name):
    alone, ranks = results["alone"][name], results["ranks"][name]
    expected, ours = (torch.tensor(result["weights"]) for result in (alone, ranks))
    if "sgd" in name:
        assert (ours - expected).norm() <= 1e-5 * expected.norm()
    histories = [result["history"] for result in (alone, ranks)]
    assert [e["iteration"] for e in histories[0]] == [e["iteration"] for e in histories[1]]
    for first, second in zip(*histories, strict=True):
        assert first.keys() == second.keys()
        for key in first.keys() & {"rec", "ds", "cl", "total", "psnr"}:
            assert second[key] == pytest.approx(first[key], rel=1e-4), (key, first)


@pytest.mark.parametrize("name", [name for name in rank_runs.CASES if "parts" in name])
def test_parts_of_a_step_are_exchanged_together(results, name):
    assert results["ranks"][name]["exchanges"] == 20  # steps


def test_the_first_rank_alone_writes(results):
    folder = results["folder"] / "ranks" / "clsd adam"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "history.jsonl", "state.pt", "student.safetensors", "best.safetensors",
        "tensorboard",
    }  # fmt: skip
    assert len(list((folder / "tensorboard").iterdir())) == 1


@pytest.mark.thorough
def test_the_end_of_a_rank_ends_the_run_with_a_sentence(tmp_path):
    started = time.monotonic()
    done = run_program(tmp_path, "die")
    assert time.monotonic() - started < 60
    assert done.stdout.splitlines() == ["[2, -9]"]
    sentences = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert sentences == [
        "train: expected all 2 ranks to go on, got an end of another than rank 0; "
        "--resume continues from the last checkpoint"
    ]
    history = (tmp_path / "died" / "clsd adam" / "history.jsonl").read_text().splitlines()
    steps = [e["iteration"] for e in map(json.loads, history) if e["kind"] == "train"]
    assert steps == list(range(1, 21))


def run_torchrun(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.thorough
def test_torchrun_restarts_a_run_that_ends_as_it_would_have(results):
    folder = results["folder"]
    run_torchrun(folder, "--max-restarts=1", rank_runs.__file__, str(folder), "restart")
    straight, restarted = (folder / name / "clsd adam" for name in ("ranks", "restarted"))
    expected, ours = (load_file(run / "student.safetensors") for run in (straight, restarted))
    assert all(torch.equal(ours[name], weight) for name, weight in expected.items())
    expected, ours = (read_history(run / "history.jsonl") for run in (straight, restarted))
    for entry in (*expected, *ours):
        entry.pop("step_seconds", None)
    assert ours == expected


@pytest.mark.thorough
def test_torchrun_starts_ranks(tmp_path):
    write_images(tmp_path / "hr", a=(40, 48))
    settings = ["model.num_blocks=1", "model.channels=4", "heads.taps=[1]", "heads.blocks=1"]
    settings += ["data.train=hr", "data.cache=cache", "data.patch_size=8", "output=run"]
    settings += ["train.iterations=3", "train.batch_size=4"]
    done = run_torchrun(tmp_path, "-m", "clsd_train", "train", *settings)
    assert done.stdout.splitlines() == [f"wrote {Path('run/student.safetensors')}"]
    assert sum("clsd: training: 1 image used" in line for line in done.stderr.splitlines()) == 1
