"""`clsd eval`: which images are scored, and how they are called."""

import json

import pytest
from PIL import Image
from support.trainer_util import noise, refused, write_images

from clsd_train.cli import main
from clsd_train.images import bicubic_downscale


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
