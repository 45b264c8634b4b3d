"""`pytest benchmarks/` on tiny shapes, in processes of its own: it is off in those of xdist."""

import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import measure
import pytest
import torch
from cases import contest, contrast, images, step

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONE_ROUND = ["--benchmark-min-rounds", "1", "--benchmark-max-time", "0"]
#: A plugin: an operator that is off by a tenth of a percent, no compiler, and a step that crashes.
SPOILED = """
import os

from cases import contest, step

import clsd_fast

conv3x3 = clsd_fast.conv3x3
clsd_fast.nn.conv3x3 = lambda *args, **kwargs: 1.001 * conv3x3(*args, **kwargs)
contest.compile_failure = lambda: os.environ.get("FAILURE")


def crash(case, name):
    os._exit(1)


step.contender = crash
"""


@pytest.fixture
def run(tmp_path):
    """Runs `pytest benchmarks/ --table tiny` with more arguments; returns its output."""

    def run(*arguments, status=0, **environment):
        command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "-p", "no:cacheprovider"]
        command += ["-rs", "--table", "tiny", "--threads", "1", *arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        result = subprocess.run(
            command, cwd=tmp_path, env=kept | environment, capture_output=True, text=True
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture
def run_spoiled(run, tmp_path):
    """The same with the plugin SPOILED."""
    (tmp_path / "spoiled.py").write_text(SPOILED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return lambda *arguments, **options: run(
        "-p", "spoiled", *arguments, PYTHONPATH=path, **options
    )


@pytest.mark.thorough
def test_every_contender_is_checked_and_timed(run, tmp_path):
    path = tmp_path / "figures.json"
    store = ["--benchmark-storage", f"file://{tmp_path}/stored"]
    run("--no-compile", *ONE_ROUND, "--benchmark-json", str(path), *store, "--benchmark-autosave")
    rows = json.loads(path.read_text())["benchmarks"]
    expected = [
        (f"{case.title} {mode}", name)
        for subject in (images, contrast, step)
        for case in subject.tiny_table()
        for mode in case.modes
        for name in case.names(mode, compiles=False)
    ]
    assert sorted((row["group"], row["name"]) for row in rows) == sorted(expected)
    for row in rows:
        facts = row["extra_info"]
        assert facts["implementation"] == row["name"] and facts["threads"] == 1
        assert facts["correctness"] <= measure.LIMIT and row["stats"]["median"] > 0
        assert {"device", "kernels", "torch", "clsd_fast", "commit", "mode"} < set(facts)

    few = ["-k", "conv3x3 and eager_channels_last", *ONE_ROUND]
    comparison = run(*few, *store, "--benchmark-compare")
    assert "eager_channels_last (NOW)" in comparison
    assert "eager_channels_last (0001_" in comparison


@pytest.mark.thorough
def test_a_wrong_contender_is_not_timed_and_no_other_is_lost(run_spoiled, tmp_path):
    path = tmp_path / "figures.json"
    arguments = ["-k", "conv3x3 and forward_backward", *ONE_ROUND, "--benchmark-json", str(path)]
    output = run_spoiled(*arguments, status=1, FAILURE="torch.compile: no compiler")
    names = [row["name"] for row in json.loads(path.read_text())["benchmarks"]]
    assert names == ["eager", "eager_channels_last"]
    for layout in measure.LAYOUTS:
        title = f"conv3x3(3, 8) 2x3x6x7 forward_backward, ours_{layout}"
        assert f"{title}: expected errors of at most 5 times the bound, got" in output
    assert "SKIPPED [2]" in output and "torch.compile: no compiler" in output


@pytest.mark.thorough
def test_a_compiled_step_that_crashes_is_skipped(run_spoiled):
    output = run_spoiled("-k", "test_step and compile_channels_last", "--benchmark-disable")
    assert "torch.compile: the process of the compiled step crashed" in output


@pytest.mark.thorough
def test_a_contender_in_its_own_process_computes_the_same():
    (case,) = step.tiny_table()
    with contest.in_own_process(step.contender, case, "eager") as contender:
        results = contender.results()
        contender.call(0)
    expected = step.contender(case, "eager").results()
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


def test_a_process_that_tries_to_compile_may_crash(monkeypatch):
    def crash(function):
        raise BrokenProcessPool

    monkeypatch.setattr(measure, "in_new_process", crash)
    assert contest.compile_failure() == "torch.compile: the process that tried it crashed"
