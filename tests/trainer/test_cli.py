import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.trainer_util import contents, refused, write_images

from clsd_fast import EDSR
from clsd_train import demo
from clsd_train.checkpoint import load_student
from clsd_train.cli import main
from clsd_train.history import read_history, step_milliseconds
from clsd_train.images import bicubic_downscale, read_image
from clsd_train.run_folder import HISTORY
from clsd_train.upscale import upscale

TINY = ("model.num_blocks=2", "model.channels=8", "heads.taps=[1,2]", "heads.blocks=1")
TINY += ("train.batch_size=2", "data.patch_size=8")


@pytest.fixture
def hr(tmp_path):
    return write_images(tmp_path / "hr", a=(40, 48), b=(36, 32))


@pytest.fixture
def settings(tmp_path, hr):
    output, cache = tmp_path / "run", tmp_path / "cache"
    return ("train", *TINY, f"data.train={hr}", f"data.cache={cache}", f"output={output}")


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_module_runs_as_a_command(tmp_path, settings, capsys):
    """One real process: its exit code and streams as a shell sees them."""
    settings = (*settings, "train.iterations=2")
    done = subprocess.run(
        [sys.executable, "-m", "clsd_train", *settings],
        cwd=tmp_path,  # not the checkout, whose sources would hide the installation
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {tmp_path / 'run' / 'student.safetensors'}\n"
    # Off a terminal the progress is plain lines.
    lines = done.stderr.splitlines()
    assert lines[0] == "clsd: training: 2 images used"
    assert [line.split()[0] for line in lines[1:]] == ["1/2", "2/2"]
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    line = refused(capsys, tmp_path, *settings)
    assert line.startswith("clsd: train: expected an empty or new output folder")


def test_config_file_then_overrides(tmp_path, settings, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("scale: 3\nmethod: ds\ntrain: {iterations: 50}\n")
    run("train", path, *settings[1:], "train.iterations=1")
    assert load_student(tmp_path / "run" / "student.safetensors").scale == 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("scale=5", "config: scale: expected 2, 3 or 4, got 5"),
        ("train.iteration=5", "nearest known is 'train.iterations'"),
        ("heads.taps=[17]", "CLSD: expected taps in 1..2, got 17"),
        ("data.patch_size=25", "expected HR of at least 50x50 pixels, got 40x48"),
        ("data.train=nowhere", "nowhere: no such folder"),
        ("data.val=nowhere", "nowhere: no such folder"),
        ("data.train=[]", "data.train: expected a folder of HR images"),
        ("train.device=abacus", "train.device: expected a device, got 'abacus'"),
        ("train.device=meta", "train.device: expected a device, got 'meta'"),
        ("train.device=0", "train.device: expected a device, got '0'"),
        ("train.threads=1000000", "train.threads: expected less than or equal to 1024"),
    ],
)
def test_train_refuses(tmp_path, settings, capsys, setting, words):
    line = refused(capsys, tmp_path, *settings, setting)
    assert line.startswith("clsd: ")
    assert words in line
    assert not (tmp_path / "run").exists()


def test_tap_17_of_16_blocks(tmp_path, settings, capsys):
    options = ("model.num_blocks=16", "heads.taps=[5,10,17]")
    line = refused(capsys, tmp_path, *settings, *options)
    assert line == "clsd: CLSD: expected taps in 1..16, got 17"


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_train_refuses_a_bad_image(tmp_path, hr, settings, capsys, damage):
    path = hr / "b.png"
    path.write_bytes(path.read_bytes()[:1500] if damage == "truncated" else b"no image")
    line = refused(capsys, tmp_path, *settings)
    assert f"{path}: expected an image, got" in line
    assert not (tmp_path / "run").exists()


def test_train_skips_a_bad_image_when_told_to(tmp_path, hr, settings, capsys):
    (hr / "b.png").write_bytes(b"no image")
    run(*settings, "data.on_bad_image=skip", "train.iterations=1")
    assert f"clsd: warning: data: {hr / 'b.png'}: expected an image" in capsys.readouterr().err


def test_train_refuses_an_output_that_cannot_be_made(tmp_path, settings, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, tmp_path, *settings, f"output={tmp_path / 'file' / 'run'}")
    assert "Not a directory" in line


def test_resume_begins_where_there_is_no_run(tmp_path, settings):
    run(*settings, "train.iterations=1", "--resume")
    assert load_student(tmp_path / "run" / "student.safetensors").scale == 2


def test_diverging_run_names_the_iteration(tmp_path, settings, capsys):
    options = ("train.iterations=300", "train.learning_rate=1e36", "method=baseline")
    with pytest.raises(SystemExit) as stop:
        run(*settings, *options)
    assert stop.value.code == 2
    _, line = capsys.readouterr().err.splitlines()
    assert "expected a finite loss, got nan at iteration 2" in line
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & {"state.pt", "student.safetensors"}


def test_eval_prints_and_writes_scores(tmp_path, hr, student_file, capsys):
    run("eval", student_file, hr, "--json", tmp_path / "scores.json")
    out = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"a", "b", "mean"}
    for name in scores:
        for model in ("bicubic", "student"):
            assert f"{scores[name][model]['psnr']:.2f}" in out
    for model in ("bicubic", "student"):
        values = [scores[name][model]["psnr"] for name in ("a", "b")]
        assert scores["mean"][model]["psnr"] == pytest.approx(np.mean(values))


def test_eval_takes_given_lr(tmp_path, hr, student_file):
    lr = tmp_path / "lr"
    lr.mkdir()
    for name in ("a", "b"):
        small = bicubic_downscale(read_image(hr / f"{name}.png"), 2)
        Image.fromarray(small).save(lr / f"{name}x2.png")
    run("eval", student_file, hr, "--json", tmp_path / "made.json")
    run("eval", student_file, hr, "--lr", lr, "--json", tmp_path / "given.json")
    assert (tmp_path / "made.json").read_bytes() == (tmp_path / "given.json").read_bytes()


def test_eval_refuses_two_images_of_one_name(tmp_path, hr, student_file, capsys):
    other = write_images(tmp_path / "other", a=(40, 40))
    line = refused(capsys, tmp_path, "eval", student_file, hr, other)
    assert "expected images of distinct names, got a twice" in line


def test_eval_refuses_an_image_too_small_to_score(tmp_path, student_file, capsys):
    small = write_images(tmp_path / "small", dot=(12, 12))
    assert "dot: quality: expected" in refused(capsys, tmp_path, "eval", student_file, small)


def test_upscale_writes_what_the_student_makes(tmp_path, hr, student_file, capsys):
    run("upscale", student_file, hr / "a.png", "--output", tmp_path / "sr")
    assert [path.name for path in (tmp_path / "sr").iterdir()] == ["a_x2.png"]
    expected = upscale(load_student(student_file), read_image(hr / "a.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "sr" / "a_x2.png"), expected)
    run("upscale", student_file, hr, "--output", tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a_x2.png", "b_x2.png"]


def test_upscale_overwrites_only_when_told_to(tmp_path, hr, student_file, capsys):
    target = tmp_path / "a_x2.png"
    target.write_text("precious")
    arguments = ("upscale", student_file, hr / "a.png", "--output", tmp_path)
    assert "a_x2.png, which exists" in refused(capsys, tmp_path, *arguments)
    run(*arguments, "--overwrite")
    assert read_image(target).shape == (80, 96, 3)


def test_upscale_writes_nothing_if_one_input_is_bad(tmp_path, hr, student_file, capsys):
    (hr / "z.png").write_text("no image")
    line = refused(capsys, tmp_path, "upscale", student_file, hr, "--output", tmp_path / "sr")
    assert "z.png: expected an image" in line
    other = write_images(tmp_path / "other", a=(8, 8))
    inputs = (hr / "a.png", other / "a.png")
    line = refused(capsys, tmp_path, "upscale", student_file, *inputs, "--output", tmp_path / "sr")
    assert "expected one input for" in line


def test_checkpoint_of_another_architecture_is_named(tmp_path, capsys):
    path = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    line = refused(capsys, tmp_path, "info", path)
    assert "got none of head.0.weight, sub_mean.bias, tail.0.0.weight among bias, weight" in line
    state = EDSR(2, 2, 8).state_dict()
    del state["body.0.body.2.weight"]
    state["body.1.body.0.weight"] = torch.zeros(8, 4, 3, 3)
    state["extra"] = torch.zeros(1)
    torch.save(state, path)
    line = refused(capsys, tmp_path, "info", path)
    assert "got body.0.body.2.weight missing; extra unexpected; " in line
    assert line.endswith("body.1.body.0.weight of another shape")


@pytest.mark.parametrize("name", ["student.safetensors", "student.pt"])
def test_broken_checkpoint_is_refused(tmp_path, capsys, name):
    path = tmp_path / name
    assert f"{path}: no such file" in refused(capsys, tmp_path, "info", path)
    path.write_bytes(b"not a checkpoint at all")
    assert str(path) in refused(capsys, tmp_path, "info", path)


def test_pickled_code_is_not_run(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    refused(capsys, tmp_path, "info", tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_info_describes_a_student_and_the_installation(student_file, capsys):
    run("info", student_file)
    out = capsys.readouterr().out
    assert "EDSR x2" in out and "0..255" in out
    run("info")
    assert torch.__version__ in capsys.readouterr().out


def test_demo_writes_its_files(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model: {num_blocks: 2, channels: 4}\nheads: {taps: [1, 2], blocks: 1}\n"
        "data: {patch_size: 8}\ntrain: {iterations: 2, batch_size: 2, eval_every: 2}\n"
    )
    for name in ("quick", "paper_x2"):
        monkeypatch.setitem(demo.PRESETS, name, path)
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    run("demo", "--output", tmp_path / "demo")
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics.keys() >= {"bicubic_psnr", "plain_psnr", "clsd_psnr", "plain_clsd_time_psnr"}
    assert metrics["plain_parameters"] == metrics["clsd_parameters"]
    plain, clsd = (read_history(tmp_path / "demo" / n / HISTORY) for n in ("plain", "clsd"))
    share = step_milliseconds(clsd) / step_milliseconds(plain)
    assert metrics["plain_clsd_time_iterations"] == max(round(2 * share), 1)
    for name in ("quick", "paper_x2"):
        times = metrics["step_ms"][name]
        assert times["ours"] > 0 and times["pytorch"] > 0
        assert times["pytorch_layout"] in ("channels_last", "contiguous")
    for kind, hours in metrics["paper_hours"].items():
        assert hours == pytest.approx(2 * metrics["step_ms"]["paper_x2"][kind] / 3_600_000)
    for name in ("comparison.png", "curve.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            assert min(image.size) > 300
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 iterations, of the paper's 2, show" in printed and "is no claim" in printed
    before = contents(tmp_path)
    assert "empty or new" in refused(capsys, tmp_path, "demo", "--output", tmp_path / "demo")
    assert contents(tmp_path) == before


def test_demo_holds_out_other_photographs():
    assert not set(demo.TRAINING) & set(demo.HELD_OUT)
