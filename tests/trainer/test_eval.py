"""`clsd eval`: which images are scored, and how they are called."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from support.trainer_util import noise, refused, write_images

from clsd_fast import EDSR
from clsd_train.checkpoint import load_student, save_student
from clsd_train.cli import main
from clsd_train.images import bicubic_downscale, bicubic_upscale
from clsd_train.upscale import upscale


def scores(tmp_path, student_file, *arguments):
    main(["eval", *map(str, (student_file, *arguments, "--json", tmp_path / "scores.json"))])
    return json.loads((tmp_path / "scores.json").read_text())


def test_frames_of_clips_are_scored_each_with_its_lr(tmp_path, student_file):
    for clip in range(2):
        for kind, change in (
            ("HR", lambda image: image),
            ("LR", lambda i: bicubic_downscale(i, 2)),
        ):
            folder = tmp_path / kind / f"{clip}"
            folder.mkdir(parents=True)
            Image.fromarray(change(noise(32, 36, clip))).save(folder / "0.png")
    made = scores(tmp_path, student_file, tmp_path / "HR")
    assert made.keys() == {"0/0", "1/0", "mean"}
    assert scores(tmp_path, student_file, tmp_path / "HR", "--lr", tmp_path / "LR") == made


def test_what_is_used_and_left_out_is_said(tmp_path, student_file, capsys):
    folder = write_images(tmp_path / "set", a=(32, 32), b=(32, 32))
    write_images(folder / "LRbicx2", a=(16, 16))
    (folder / "c.avif").write_bytes(b"")
    assert scores(tmp_path, student_file, folder).keys() == {"a", "b", "mean"}
    assert capsys.readouterr().err.splitlines() == [
        "clsd: eval: 2 images used; left out: .avif 1, in a folder named as of LR images 1"
    ]


def test_names_are_shown_as_they_are(tmp_path, student_file, capsys):
    names = ("[red]a", "[b", "a[link]", ":smile:")
    folder = write_images(tmp_path / "set", **dict.fromkeys(names, (32, 32)))
    write_images(folder / "[", **{"b]": (32, 32)})
    scores(tmp_path, student_file, folder)
    out = capsys.readouterr().out
    assert all(name in out for name in (*names, "[/b]"))


def test_two_images_of_one_name_are_refused_by_both(tmp_path, student_file, capsys):
    folders = [write_images(tmp_path / f"{number}" / "HR", a=(32, 32)) for number in range(2)]
    line = refused(capsys, tmp_path, "eval", student_file, *folders)
    named = " and ".join(str(folder / "a.png") for folder in folders)
    assert line == f"clsd: eval: expected images of distinct names, got a twice: {named}"


def test_name_of_the_last_line_is_refused(tmp_path, student_file, capsys):
    folder = write_images(tmp_path / "set", mean=(32, 32))
    line = refused(capsys, tmp_path, "eval", student_file, folder)
    assert (
        line == f"clsd: eval: expected images of other names than mean, got {folder / 'mean.png'}"
    )


@pytest.mark.parametrize("given", ["file", "avif"])
def test_what_is_no_folder_of_images_is_named(tmp_path, student_file, capsys, given):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "avif").mkdir()
    (tmp_path / "avif" / "a.avif").write_bytes(b"")
    line = refused(capsys, tmp_path, "eval", student_file, tmp_path / given)
    assert line.endswith({"file": "file: a file", "avif": "got none; left out: .avif 1"}[given])


def other_student(path):
    torch.manual_seed(1)
    save_student(EDSR(2, 1, 8), path)
    return path


def test_students_side_by_side(tmp_path, student_file, capsys):
    folder = write_images(tmp_path / "set", a=(32, 36))
    other = other_student(tmp_path / "other.safetensors")
    alone = [scores(tmp_path, file, folder)["a"]["student"] for file in (student_file, other)]
    both = scores(tmp_path, student_file, folder, other)["a"]
    assert [both[name] for name in ("student", "other")] == alone
    assert "other dB" in capsys.readouterr().out
    same_stem = tmp_path / "2" / "other.safetensors"
    same_stem.parent.mkdir()
    same_stem.write_bytes(student_file.read_bytes())
    by_path = scores(tmp_path, other, same_stem, folder)["a"]
    assert by_path.keys() == {"bicubic", str(other), str(same_stem)}
    assert by_path[str(same_stem)] == alone[0]


def test_named_sets_have_means_of_their_own(tmp_path, student_file):
    folders = {
        "Set5": write_images(tmp_path / "5", a=(32, 32), b=(32, 40)),
        "Set14": write_images(tmp_path / "14", a=(40, 32)),
    }
    words = [f"{name}={folder}" for name, folder in folders.items()]
    rows = scores(tmp_path, student_file, *words)
    assert list(rows) == ["Set5/a", "Set5/b", "Set5/mean", "Set14/a", "Set14/mean"]
    for name, folder in folders.items():
        assert rows[f"{name}/mean"] == scores(tmp_path, student_file, folder)["mean"]
    for name, folder in folders.items():
        (tmp_path / f"lr{name}").mkdir()
        for path in folder.iterdir():
            with Image.open(path) as image:
                lr = bicubic_downscale(np.asarray(image), 2)
            Image.fromarray(lr).save(tmp_path / f"lr{name}" / path.name)
    lr_folders = [tmp_path / f"lr{name}" for name in folders]
    assert scores(tmp_path, student_file, *words, "--lr", *lr_folders) == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=hr", "hr"], "expected sets NAME=FOLDER of distinct names, got hr"),
        (["a=hr", "a=hr"], "expected sets NAME=FOLDER of distinct names, got a=hr"),
        (["a=hr", "b=hr", "--lr", "hr"], "a folder of LR images for each set, got 1 for 2"),
        (["a=none"], "expected a folder of images, got none: no such folder"),
        (["hr", "x4.safetensors"], "expected students of one scale, got student x2, x4 x4"),
        (["hr", "student.safetensors"], "distinct weights, got student.safetensors, student"),
        (["hr", "none.pt"], "checkpoint: expected a file, got none.pt: no such file"),
        (["hr", "--tile", "0"], "--tile: expected a positive integer, got '0'"),
        (["hr", "--csv", "hr"], "expected a file to write, got hr: a folder"),
    ],
)
def test_refusals(tmp_path, student_file, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "hr", a=(32, 32))
    save_student(EDSR(4, 1, 8), tmp_path / "x4.safetensors")
    line = refused(capsys, tmp_path, "eval", student_file.name, *words)
    assert message in line


def test_rgb_is_scored_on_all_channels(tmp_path, student_file):
    folder = write_images(tmp_path / "set", a=(32, 36))
    row = scores(tmp_path, student_file, folder, "--rgb")["a"]["bicubic"]
    hr = noise(32, 36)
    sr = bicubic_upscale(bicubic_downscale(hr, 2), 2)
    error = (sr[2:-2, 2:-2].astype(float) - hr[2:-2, 2:-2]) ** 2
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error.mean()), abs=1e-9)
    expected = structural_similarity(
        sr[2:-2, 2:-2], hr[2:-2, 2:-2], channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    # It also counts the border, where the window is not whole.
    assert row["ssim"] == pytest.approx(expected, abs=0.02)


def test_csv_has_a_line_for_each_image_and_method(tmp_path, student_file):
    folder = write_images(tmp_path / "set", **{"a,b": (32, 36), "c": (32, 32)})
    rows = scores(tmp_path, student_file, folder, "--csv", tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["image", "method", "psnr", "ssim"]
    found = {(image, method): (float(psnr), float(ssim)) for image, method, psnr, ssim in lines[1:]}
    assert found == {
        (image, method): tuple(score.values())
        for image, row in rows.items()
        for method, score in row.items()
    }


def test_self_ensemble_is_the_mean_of_eight(tmp_path, student_file):
    student, image = load_student(student_file), noise(20, 24)
    total = 0
    for turns in range(4):
        for mirror in (lambda x: x, np.fliplr):
            lr = torch.tensor(mirror(np.rot90(image, turns)).copy()).movedim(-1, 0)[None].float()
            with torch.no_grad():
                sr = student(lr)[0].movedim(0, -1).numpy()
            total = total + np.rot90(mirror(sr), -turns)
    expected = (total / 8).clip(0, 255).round()
    result = upscale(student, image, ensemble=True)
    assert np.abs(result - expected).max() <= 1  # where a mean is all but between two numbers
    assert (result == expected).mean() > 0.99
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(noise(32, 32)).save(folder / "a.png")
    plain = scores(tmp_path, student_file, folder)["a"]["student"]
    assert scores(tmp_path, student_file, folder, "--ensemble")["a"]["student"] != plain


def test_tiles_change_no_score(tmp_path, student_file):
    folder = write_images(tmp_path / "set", a=(64, 70))
    whole = scores(tmp_path, student_file, folder)
    assert scores(tmp_path, student_file, folder, "--tile", "9") == whole
