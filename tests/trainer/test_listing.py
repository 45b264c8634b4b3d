import os
from collections import Counter
from pathlib import Path

import pytest
from support.trainer_util import write_images

from clsd_train.errors import UserError
from clsd_train.listing import SUFFIXES, describe, list_images, summarize


def names(folder, **apart):
    listing = list_images(folder, {Path(path): role for role, path in apart.items()})
    return [file.name for file in listing.files], dict(listing.left_out)


def test_files_are_named_by_their_path_below_the_folder(tmp_path):
    folder = write_images(tmp_path / "hr", b=(4, 4), **{"a.1": (4, 4)})
    write_images(folder / "clip", b=(4, 4))
    (folder / "clip" / "c.PNG").write_bytes(b"")
    assert names(folder) == (["a.1", "b", "clip/b", "clip/c"], {})
    assert list_images(folder).files[2].path == folder / "clip" / "b.png"


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    folder = write_images(tmp_path / ".data" / "hr", a=(4, 4), **{"._a": (4, 4)})
    for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        write_images(folder / hidden, a=(4, 4), b=(4, 4))
    for name in ("b.avif", "c.AVIF", "README", "notes.txt"):
        (folder / name).write_bytes(b"")
    left_out = {"hidden": 4, ".avif": 2, "without suffix": 1, ".txt": 1}
    assert names(folder) == (["a"], left_out)


def test_folders_of_another_role_are_left_out(tmp_path):
    folder = write_images(tmp_path / "hr", a=(4, 4))
    write_images(folder / "LR", a=(4, 4))
    write_images(folder / "deep" / "run" / "pictures", b=(4, 4))
    (folder / "again").symlink_to(folder / "LR")
    found = names(folder, lr=folder / "LR", out=folder / "deep" / "run")
    assert found == (["a"], {"folder of lr": 2, "folder of out": 1})
    # The folder itself is what it was given for, wherever it lies.
    assert names(folder, out=tmp_path, hr=folder)[0] == ["LR/a", "a", "deep/run/pictures/b"]


def test_what_was_made_of_another_image_is_left_out(tmp_path):
    folder = write_images(tmp_path, a=(4, 4), a_x2=(4, 4), a_x4=(4, 4), b_x2=(4, 4), a_x9=(4, 4))
    write_images(folder / "sr", a_x2=(4, 4), c_x2=(4, 4))
    write_images(folder / "sr" / "sr", c_x2=(4, 4))
    found = ["a", "a_x9", "b_x2", "sr/c_x2", "sr/sr/c_x2"]
    assert names(folder) == (found, {"output of clsd upscale": 3})


def test_linked_files_and_folders_are_followed(tmp_path):
    elsewhere = write_images(tmp_path / "elsewhere" / "deep", a=(4, 4)).parent
    folder = write_images(tmp_path / "hr", own=(4, 4))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "b.png").symlink_to(elsewhere / "deep" / "a.png")
    (tmp_path / "root").symlink_to(folder)
    for given in (folder, tmp_path / "root"):
        assert names(given) == (["b", "linked/deep/a", "own"], {})


def test_no_link_leads_round_or_to_a_folder_twice(tmp_path):
    folder = write_images(tmp_path / "hr", a=(4, 4))
    write_images(tmp_path / "beside", no=(4, 4))
    write_images(folder / "x", b=(4, 4))
    write_images(folder / "y", c=(4, 4))
    (folder / "self").symlink_to(folder)
    (folder / "x" / "up").symlink_to(tmp_path)
    (folder / "x" / "to_y").symlink_to(folder / "y")
    (folder / "y" / "to_x").symlink_to(folder / "x")
    (folder / "broken").symlink_to(folder / "broken")
    expected = {"link to a folder that is listed": 4, "link to nothing": 1}
    assert names(folder) == (["a", "x/b", "y/c"], expected)


def test_what_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, got in (
        ("nowhere", "no such folder"),
        ("dangling", "no such folder"),
        ("a\0b", "no such folder"),
        ("file", "a file"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(UserError) as error:
            list_images(tmp_path / name)
        assert str(error.value) == (
            f"data: expected a folder of images, got {tmp_path / name}: {got}"
        )


def test_unreadable_subfolder_is_named(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "hr", a=(4, 4))
    locked = write_images(folder / "locked", b=(4, 4))
    scandir = os.scandir

    def refuse(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root
    with pytest.raises(UserError, match=rf"readable folder, got {locked}: Permission denied"):
        list_images(folder)


def test_folder_without_images_says_what_is_read_and_what_is_there(tmp_path):
    for name in ("a.gif", "b.jp2", "c.jp2", ".d.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as error:
        list_images(tmp_path)
    assert str(error.value) == (
        f"data: expected images in {tmp_path} ({', '.join(SUFFIXES)}), got none; "
        "left out: .jp2 2, .gif 1, hidden 1"
    )


def test_broken_names_are_found(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"\xff.png", b"new\nline.png"):
        with open(os.path.join(folder, name), "wb"):
            pass
    assert names(tmp_path)[0] == ["new\nline", "\udcff"]


def test_summary_counts_the_rare_reasons_together():
    assert summarize("training", 1, Counter()) == "training: 1 image used"
    assert summarize("training", 2, Counter(b=1, a=3)) == (
        "training: 2 images used; left out: a 3, b 1"
    )
    many = Counter({f".{number}": 1 for number in range(12)})
    assert describe(many).endswith(", other 4")
    assert describe(many).count(",") == 8
