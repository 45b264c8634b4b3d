"""What becomes of a run that is stopped, resumed, started twice, or whose disk is full or torn."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import killed_runs
from support.trainer_util import contents, refused, tiny_config, wait_for, write_images

from clsd_train import loop
from clsd_train.board import Board
from clsd_train.checkpoint import load_student
from clsd_train.cli import main
from clsd_train.data import load_cached
from clsd_train.errors import Notice, UserError
from clsd_train.files import write_atomically
from clsd_train.history import History
from clsd_train.interrupt import Interrupted
from clsd_train.lock import LOCK, FolderLock
from clsd_train.loop import Run

TINY = ("model.num_blocks=1", "model.channels=4", "method=baseline", "data.patch_size=8")
TINY += ("train.batch_size=2", "train.log_every=1", "data.train=hr", "data.cache=cache")


@pytest.fixture(autouse=True)
def interruptible():
    """As in the foreground, wherever the tests run: what is ignored stays ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with images in hr."""
    write_images(tmp_path / "hr", a=(40, 48), b=(36, 32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*settings):
    main(["train", *settings])


def settings_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def state_of(folder):
    return torch.load(folder / "state.pt")


def history_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def signal_in_step(monkeypatch, number, iteration, times=1):
    """Send this process a signal in the middle of a step."""
    step = Run._step

    def stopped(run):
        if run.iteration + 1 == iteration:
            for _ in range(times):
                os.kill(os.getpid(), number)
        step(run)

    monkeypatch.setattr(Run, "_step", stopped)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(here, monkeypatch, capsys, number, code):
    train(*TINY, "train.iterations=5", "output=straight")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        signal_in_step(patch, number, 2)
        with pytest.raises(SystemExit) as stop:
            train(*TINY, "train.iterations=5", "output=run")
    assert stop.value.code == code
    assert "iteration 2 is saved" in capsys.readouterr().err.splitlines()[-1]
    assert state_of(here / "run")["iteration"] == 2
    assert not (here / "run" / LOCK).exists()
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    train("output=run", "--resume")
    for name, value in state_of(here / "straight")["model"].items():
        assert torch.equal(value, state_of(here / "run")["model"][name]), name


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    run = Run(tiny_config(tmp_path, save_every=100, iterations=100))
    signal_in_step(monkeypatch, signal.SIGINT, 2, times=2)
    with pytest.raises(Interrupted):
        run.train()
    assert run.iteration == 1
    assert not (tmp_path / "run" / loop.STATE).exists()


def test_a_signal_in_the_last_step_ends_the_command(tmp_path, monkeypatch):
    run = Run(tiny_config(tmp_path, iterations=2))
    signal_in_step(monkeypatch, signal.SIGTERM, 2)
    with pytest.raises(Interrupted, match="iteration 2 is saved"):
        run.train()


def test_an_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    """As of a command that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal_in_step(monkeypatch, signal.SIGINT, 1)
        assert len(Run(tiny_config(tmp_path, iterations=2)).train()) > 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_is_terminated_saves(here):
    command = [sys.executable, "-m", "clsd_train", "train", *TINY, "train.iterations=1000000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "train.save_every=1000000", "output=run"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = here / "run" / "history.jsonl"
    wait_for(lambda: history.exists() and history.stat().st_size > 0)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert state_of(here / "run")["iteration"] >= 1
    assert load_student(here / "run" / "student.safetensors").channels == 4


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGKILL, 2),
     pytest.param(signal.SIGKILL, 20, marks=pytest.mark.thorough),
     pytest.param(signal.SIGTERM, 10, marks=pytest.mark.thorough)],
)  # fmt: skip
def test_a_run_that_is_ended_at_random_moments_is_the_run(here, number, times):
    settings = (*TINY, "method=clsd", "heads.taps=[1]", "heads.blocks=1", "train.iterations=60")
    settings += ("train.save_every=7", "train.log_every=4", "train.eval_every=10", "data.val=hr")
    settings += ("train.ema=0.9", "train.precision=fp16", "heads.contrast=patch_nce")
    program = Path(killed_runs.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), *settings, str(int(number)), str(times), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    folders = here / "straight", here / "run"
    expected, ended = (torch.load(folder / "state.pt") for folder in folders)
    for part in ("model", "optimizer", "scaler", "meter", "average", "rng", "best"):
        torch.testing.assert_close(ended[part], expected[part], rtol=0, atol=0)
    for name in ("student.safetensors", "best.safetensors"):
        students = [load_file(folder / name) for folder in folders]
        torch.testing.assert_close(*students, rtol=0, atol=0)
    clocked = {"step_seconds": 0.0}
    histories = [[entry | clocked for entry in history_of(folder)] for folder in folders]
    assert histories[0] == histories[1]


def test_resume_keeps_the_settings_of_the_run(here, capsys):
    train(*TINY, "train.learning_rate=1e-3", "train.iterations=2", "output=run")
    before = settings_of(here / "run")
    capsys.readouterr()
    train("output=run", "train.iterations=3", "train.betas=[0.5,0.6]", "train.eps=0.1", "--resume")
    err = capsys.readouterr().err.splitlines()
    assert err[:3] == [
        "clsd: train.iterations: 2 -> 3",
        "clsd: train.betas: [0.9, 0.999] -> [0.5, 0.6]",
        "clsd: train.eps: 1e-08 -> 0.1",
    ]
    after = settings_of(here / "run")
    assert after["train"] == {**before["train"], "iterations": 3, "betas": [0.5, 0.6], "eps": 0.1}
    assert {k: v for k, v in after.items() if k != "train"} == {
        k: v for k, v in before.items() if k != "train"
    }
    (group,) = state_of(here / "run")["optimizer"]["param_groups"]
    assert (list(group["betas"]), group["eps"]) == ([0.5, 0.6], 0.1)
    assert group["lr"].item() == pytest.approx(5e-4)
    (entry,) = [entry for entry in history_of(here / "run") if entry["kind"] == "settings"]
    assert entry["iteration"] == 2
    assert entry["changed"]["train.eps"] == [1e-8, 0.1]


def test_what_a_file_states_goes_on_top(here):
    (here / "c.yaml").write_text("train: {seed: 3}\noutput: run\n")
    train("c.yaml", *TINY, "train.iterations=1", "train.gamma=0.3")
    (here / "c.yaml").write_text("train: {seed: 4}\noutput: run\n")
    train("c.yaml", "--resume")
    assert settings_of(here / "run")["train"]["seed"] == 4
    assert settings_of(here / "run")["train"]["gamma"] == 0.3


def test_resume_from_another_folder_means_the_same_images(here, monkeypatch):
    train(*TINY, "train.iterations=1", "output=run")
    (here / "run").rename(here / "moved")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    train("output=../moved", "train.iterations=2", "--resume")
    assert state_of(here / "moved")["iteration"] == 2
    assert settings_of(here / "moved")["data"]["train"] == [str(here / "hr")]


def test_fewer_iterations_than_are_done_leave_nothing_to_do(here, capsys):
    train(*TINY, "train.iterations=3", "output=run")
    before = (here / "run" / "state.pt").read_bytes()
    train("output=run", "train.iterations=2", "--resume")
    assert "nothing is left of 2 iterations, 3 are done" in capsys.readouterr().err
    assert (here / "run" / "state.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_settings_that_are_gone_are_those_of_the_state(here, damage):
    train(*TINY, "train.iterations=1", "train.gamma=0.3", "output=run")
    config = here / "run" / "config.yaml"
    config.unlink() if damage == "gone" else config.write_text("")
    train("output=run", "train.iterations=2", "--resume")
    assert settings_of(here / "run")["train"]["gamma"] == 0.3


def test_damaged_settings_are_named(here, capsys):
    train(*TINY, "train.iterations=1", "output=run")
    (here / "run" / "config.yaml").write_text("train: [")
    line = refused(capsys, here, "train", "output=run", "--resume")
    assert "config: expected YAML in run/config.yaml, got" in line


def test_a_run_that_failed_at_once_can_be_started_again(here, capsys):
    with pytest.raises(SystemExit):
        train(*TINY, "train.learning_rate=1e38", "model.res_scale=1e38", "output=run")
    assert "nothing was saved yet" in capsys.readouterr().err
    assert (here / "run" / "config.yaml").exists()
    train(*TINY, "train.iterations=1", "output=run")
    assert state_of(here / "run")["iteration"] == 1


def test_start_and_resume_agree_on_a_run_without_a_checkpoint(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 2, times=2)
        with pytest.raises(SystemExit):
            train(*TINY, "train.iterations=3", "output=run")
    line = refused(capsys, here, "train", *TINY, "output=run")
    assert line.endswith("got run (--resume continues its run)")
    capsys.readouterr()
    train("output=run", "train.gamma=0.3", "--resume")
    err = capsys.readouterr().err.splitlines()
    assert err[:2] == [
        "clsd: no checkpoint is in run, its run begins again",
        "clsd: train.gamma: 0.5 -> 0.3",
    ]
    settings, *steps = history_of(here / "run")
    assert settings["changed"] == {"train.gamma": [0.5, 0.3]}
    assert [entry["iteration"] for entry in steps] == [1, 2, 3]


def test_other_peoples_folders_are_left_alone(here, capsys):
    for flags in ([], ["--resume"]):
        line = refused(capsys, here, "train", *TINY, "output=hr", *flags)
        assert line.endswith("expected an empty or new output folder, got hr with other files")


def test_a_student_without_its_state_is_not_replaced(here, capsys):
    train(*TINY, "train.iterations=1", "output=run")
    (here / "run" / "state.pt").unlink()
    line = refused(capsys, here, "train", "output=run", "--resume")
    assert "expected state.pt beside student.safetensors in run, got none" in line


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_the_second_of_two_starts_is_refused(here, capsys, flags):
    first = Run(tiny_config(here))
    arguments = ("train", *TINY, f"output={here / 'run'}", *flags)
    line = refused(capsys, here, *arguments)
    assert line == f"clsd: train: expected a folder that no other run writes to, got {here / 'run'}"
    first.train()
    assert not (here / "run" / LOCK).exists()
    Run(tiny_config(here), resume=True).close()


def test_the_lock_of_a_dead_process_is_none(here):
    (here / "run").mkdir()
    (here / "run" / LOCK).write_text("")
    train(*TINY, "train.iterations=1", "output=run")
    assert not (here / "run" / LOCK).exists()


def test_a_lock_is_held_by_one(tmp_path):
    folder = tmp_path / "a" / "b"
    first = FolderLock(folder)
    with pytest.raises(UserError, match="no other run"):
        FolderLock(folder)
    first.release()
    assert list(tmp_path.iterdir()) == []
    second = FolderLock(folder)
    first.release()  # again: not the second's
    with pytest.raises(UserError, match="no other run"):
        FolderLock(folder)
    (folder / "result").write_text("")
    second.release()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_refused_run_leaves_no_folder(here, capsys):
    refused(capsys, here, "train", *TINY, "heads.taps=[9]", "method=ds", "output=a/b/run")
    assert not (here / "a").exists()


@pytest.mark.parametrize(
    "line",
    [b'{"kind": "train", "iter', b"\0" * 100, b"\xff\xfe", b"[1]", b'{"kind": "train"}', b"",
     b'{"kind": "train", "iteration": "2"}', b"[" * 100_000],
)  # fmt: skip
def test_damaged_lines_of_the_history_are_dropped(tmp_path, line):
    path = tmp_path / "history.jsonl"
    good = {"kind": "train", "iteration": 1, "rec": 0.5}
    path.write_bytes(json.dumps(good).encode() + b"\n" + line + b"\n")
    with pytest.warns(Notice, match="dropped 1 damaged of 2"):
        history = History(path, 9)
    assert history.entries == [good]
    history.add(good)
    assert [json.loads(text) for text in path.read_text().splitlines()] == [good, good]


def test_a_torn_history_is_repaired_on_resume(here, capsys):
    train(*TINY, "train.iterations=2", "output=run")
    path = here / "run" / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    train("output=run", "train.iterations=3", "--resume")
    assert "dropped 1 damaged" in capsys.readouterr().err
    assert [e["iteration"] for e in history_of(here / "run") if e["kind"] == "train"] == [1, 3]


@pytest.mark.parametrize("length", [0, 100, -100])
def test_a_torn_state_is_named(here, capsys, length):
    train(*TINY, "train.iterations=1", "output=run")
    path = here / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:length])
    line = refused(capsys, here, "train", "output=run", "--resume")
    assert "checkpoint: expected a PyTorch file, got run/state.pt: " in line


@pytest.mark.parametrize(
    ("key", "value"),
    [("rng", {}), ("rng", {"cpu": torch.zeros(3)}), ("rng", 1), ("iteration", -1),
     ("iteration", "1"), ("optimizer", {}), ("optimizer", 1), ("scaler", 1), ("average", 1),
     ("meter", {}), ("meter", {"sums": 1, "steps": 1}),
     ("optimizer", {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}),
     ("step", {"optimizer": {}}),
     ("model", {"student.head.0.weight": 1}), ("model", {})],
)  # fmt: skip
def test_a_state_of_something_else_is_named(here, capsys, key, value):
    train(*TINY, "train.iterations=1", "output=run")
    state = state_of(here / "run")
    torch.save({**state, key: value}, here / "run" / "state.pt")
    line = refused(capsys, here, "train", "output=run", "--resume")
    assert line.startswith("clsd: checkpoint: expected the ")


def test_an_early_state(here):
    """The optimizer and its like were once under a name of their own."""
    train(*TINY, "train.iterations=2", "train.ema=0.5", "output=run")
    shutil.copytree(here / "run", here / "early")
    path = here / "early" / "state.pt"
    state = state_of(here / "early")
    step = {name: state.pop(name) for name in ("optimizer", "scaler", "meter", "average")}
    torch.save({**state, "step": step}, path)
    saved = load_student(here / "run" / "student.safetensors").state_dict()
    torch.testing.assert_close(load_student(path).state_dict(), saved, rtol=0, atol=0)
    for run in ("run", "early"):
        train(f"output={run}", "train.iterations=4", "--resume")
    ended, expected = (state_of(here / run) for run in ("early", "run"))
    assert ended.keys() == expected.keys() >= {"optimizer", "average"}
    for part in ("model", "optimizer", "average"):
        torch.testing.assert_close(ended[part], expected[part], rtol=0, atol=0)


def test_scratch_folders_of_a_dead_process_are_removed(here):
    scratch = here / "run" / ".state.pt.abc"
    scratch.mkdir(parents=True)
    (scratch / "state.pt").write_bytes(b"half")
    train(*TINY, "train.iterations=1", "output=run")
    assert not scratch.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda index, pixels: index.write_text('[{"name":'),
     lambda index, pixels: index.write_text('{"a": 1}'),
     lambda index, pixels: index.write_text('[{"name": "a", "lr": [-9, 4, 4, 3], "hr": [0, 8]}]'),
     lambda index, pixels: index.write_bytes(b"\xff"),
     lambda index, pixels: pixels.write_bytes(b""),
     lambda index, pixels: pixels.write_bytes(pixels.read_bytes()[:-1]),
     lambda index, pixels: pixels.unlink()],
)  # fmt: skip
def test_a_damaged_cache_is_written_again(tmp_path, damage):
    data = tiny_config(tmp_path).data
    before = [pair.hr.copy() for pair in load_cached(data.train, (), 2, data)]
    (index,), (pixels,) = data.cache.glob("*.json"), data.cache.glob("*.bin")
    damage(index, pixels)
    with pytest.warns(UserWarning, match="expected a whole cache"):
        after = load_cached(data.train, (), 2, data)
    assert all((a.hr == b).all() for a, b in zip(after, before, strict=True))


@contextlib.contextmanager
def small_disk(size):
    """Every file ends at a size, as on a disk that is full: also one that pytest's lines go to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence(here, capsys):
    train(*TINY, "train.iterations=1", "output=run")
    before = contents(here / "run")
    capsys.readouterr()
    with small_disk(6000), pytest.raises(SystemExit) as stop:
        train("output=run", "train.iterations=2", "--resume")
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "expected to write run/state.pt, got File too large; what was there is kept" in line
    for name in ("state.pt", "student.safetensors"):
        assert contents(here / "run")[here / "run" / name] == before[here / "run" / name]
    assert not list((here / "run").glob(".*"))


def test_a_log_that_cannot_grow_is_one_sentence(tmp_path, capsys):
    board = Board(tmp_path / "board", 1)
    sentence = r"expected to write .*board, got File too large"
    with small_disk(1000), pytest.raises(UserError, match=sentence), board:
        for iteration in range(1000):
            board.add("train", {"rec": 0.5}, iteration)
    assert capsys.readouterr().err == ""


def test_a_cache_that_finds_no_room_is_one_sentence(here, capsys):
    with small_disk(100):
        line = refused(capsys, here, "train", *TINY, "output=run")
    assert line == "clsd: data: expected to write the cache cache, got File too large"


def test_a_history_that_cannot_grow_is_one_sentence(tmp_path):
    history = History(tmp_path / "history.jsonl", 0)
    sentence = r"expected to write .*history.jsonl, got File too large"
    with small_disk(10), pytest.raises(UserError, match=sentence):
        history.add({"kind": "train", "iteration": 1})


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "real" / "target.json"
    link.symlink_to(target)
    write_atomically(link, lambda path: path.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, lambda path: path.write_text("new"))
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert pipe.is_fifo()
