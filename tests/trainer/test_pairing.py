from pathlib import Path

import pytest

from clsd_train.errors import UserError
from clsd_train.pairing import find_pairs


def touch(root, *names):
    """Empty files of these paths below root, which pairing does not open."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root, hr, lr, scale=2):
    """Names, and the paths of HR and LR below root, of given folders below root."""
    pairs, left_out = find_pairs([root / f for f in hr], [root / f for f in lr], scale)
    paths = [tuple(str(p.relative_to(root)) for p in (pair.hr, pair.lr)) for pair in pairs]
    return [pair.name for pair in pairs], paths, dict(left_out)


@pytest.mark.parametrize("lr_name", ["a", "ax2"])
def test_stem_or_stem_and_scale(tmp_path, lr_name):
    touch(tmp_path, "hr/a.png", f"lr/{lr_name}.bmp")
    assert found(tmp_path, ["hr"], ["lr"]) == (["a"], [("hr/a.png", f"lr/{lr_name}.bmp")], {})


def test_frames_of_equal_names_stay_in_their_clips(tmp_path):
    clips = [f"{clip:03d}/{frame:08d}" for clip in range(3) for frame in range(2)]
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("HR", "LR") for name in clips))
    pairs = [(f"HR/{name}.png", f"LR/{name}.png") for name in clips]
    assert found(tmp_path, ["HR"], ["LR"]) == (clips, pairs, {})


def test_data_sets_of_equal_names_are_paired_in_order(tmp_path):
    touch(tmp_path, *(f"{s}/{k}/0001.png" for s in "AB" for k in ("HR", "LR")))
    _, pairs, _ = found(tmp_path, ["B/HR", "A/HR"], ["B/LR", "A/LR"])
    assert pairs == [(f"{s}/HR/0001.png", f"{s}/LR/0001.png") for s in "BA"]


LAYOUTS = {
    "DIV2K": ("DIV2K_train_HR", "0001.png", "DIV2K_train_LR_bicubic", "X2/0001x2.png"),
    "DIV2K, folder of the scale": (
        "DIV2K_train_HR", "0001.png", "DIV2K_train_LR_bicubic/X2", "0001x2.png"),
    "BasicSR, sub-images": (
        "DIV2K_train_HR_sub", "0001_s001.png", "DIV2K_train_LR_bicubic", "X2_sub/0001_s001.png"),
    "BasicSR, benchmarks": ("Set5/GTmod12", "baby.png", "Set5", "LRbicx2/baby.png"),
    "REDS": ("train_sharp", "000/00000000.png", "train_sharp_bicubic", "X2/000/00000000.png"),
    "roots": ("DIV2K", "DIV2K_train_HR/0001.png", "DIV2K", "DIV2K_train_LR_bicubic/X2/0001x2.png"),
    "LR in HR": ("DIV2K", "0001.png", "DIV2K/LR", "0001.png"),
    "LR in HR's parent": ("all", "HR/0001.png", "all/LR", "0001x2.png"),
    "clips of both": ("HR", "DIV2K/0001.png", "LR", "DIV2K/X2/0001x2.png"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_data_sets(tmp_path, layout):
    hr_folder, hr, lr_folder, lr = LAYOUTS[layout]
    touch(tmp_path, f"{hr_folder}/{hr}", f"{lr_folder}/{lr}")
    if hr_folder == lr_folder:  # one root for both: the LR folder inside has to be given
        lr_folder, lr = f"{lr_folder}/{lr.split('/')[0]}", lr.partition("/")[2]
    touch(tmp_path, f"{lr_folder}/{lr.replace('2', '4')}" if "2" in lr else f"{lr_folder}/no.png")
    names, pairs, left_out = found(tmp_path, [hr_folder], [lr_folder])
    assert names == [hr.removesuffix(".png")]
    assert pairs == [(f"{hr_folder}/{hr}", f"{lr_folder}/{lr}")]
    assert left_out["LR of another scale or without HR"] == 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_other_scales_are_left_out(tmp_path, scale):
    touch(tmp_path, "hr/a.png", *(f"lr/{f}{s}/a.png" for f in ("X", "LRbicx") for s in (8, scale)))
    with pytest.raises(UserError, match="expected one LR image"):
        found(tmp_path, ["hr"], ["lr"], scale)
    _, pairs, left_out = found(tmp_path, ["hr"], [f"lr/X{scale}"], scale)
    assert pairs == [("hr/a.png", f"lr/X{scale}/a.png")]
    assert not left_out


def test_own_path_comes_before_the_name_of_the_scale(tmp_path):
    touch(tmp_path, "hr/p.png", "hr/px2.png", "lr/p.png", "lr/px2.png")
    names, pairs, _ = found(tmp_path, ["hr"], ["lr"])
    assert names == ["p", "px2"]
    assert pairs == [("hr/p.png", "lr/p.png"), ("hr/px2.png", "lr/px2.png")]


def refusal(root, hr=("hr",), lr=("lr",)):
    with pytest.raises(UserError) as error:
        found(root, hr, lr)
    return str(error.value).replace(f"{root}/", "")


def test_ambiguous_files_are_refused_by_name(tmp_path):
    touch(tmp_path, "hr/a.png", "lr/a.png", "lr/a.jpg")
    line = "data: expected one LR image for hr/a.png, got lr/a.jpg and lr/a.png"
    assert refusal(tmp_path) == line
    touch(tmp_path, "hr2/a.png", "hr2/a.jpg", "lr2/a.png")
    line = "data: expected one HR image for lr2/a.png, got hr2/a.jpg and hr2/a.png"
    assert refusal(tmp_path, ["hr2"], ["lr2"]) == line
    touch(tmp_path, "hr3/a.png", "lr3/a.png", "lr3/X2/a.png")
    line = "data: expected one LR image for hr3/a.png, got lr3/X2/a.png and lr3/a.png"
    assert refusal(tmp_path, ["hr3"], ["lr3"]) == line
    touch(tmp_path, "hr4/A_HR/a.png", "hr4/B_HR/a.png", "lr4/a.png")
    line = "data: expected one HR image for lr4/a.png, got hr4/A_HR/a.png and hr4/B_HR/a.png"
    assert refusal(tmp_path, ["hr4"], ["lr4"]) == line


def test_an_image_of_another_clip_is_no_match(tmp_path):
    touch(tmp_path, "hr/clip1/a.png", "lr/clip2/a.png", "lr/a.png")
    line = "data: expected an LR image clip1/a or clip1/ax2 for hr/clip1/a.png, got none in lr"
    assert refusal(tmp_path) == line


def test_lists_of_other_lengths_are_searched_as_a_whole(tmp_path):
    touch(tmp_path, "hr/a.png", "hr/b.png", "lr1/a.png", "lr2/bx2.png")
    pairs = [("hr/a.png", "lr1/a.png"), ("hr/b.png", "lr2/bx2.png")]
    assert found(tmp_path, ["hr"], ["lr1", "lr2"]) == (["a", "b"], pairs, {})
    touch(tmp_path, "lr2/a.png")
    line = "data: expected one LR image for hr/a.png, got lr1/a.png and lr2/a.png"
    assert refusal(tmp_path, ["hr"], ["lr1", "lr2"]) == line
    touch(tmp_path, "hr2/a.png")
    line = "data: expected one HR image for lr1/a.png, got hr/a.png and hr2/a.png"
    assert refusal(tmp_path, ["hr", "hr2"], ["lr1"]) == line
    touch(tmp_path, "hr3/c.png")
    line = "data: expected an LR image c or cx2 for hr3/c.png, got none in lr1, lr2, lr2"
    assert refusal(tmp_path, ["hr3", "hr3"], ["lr1", "lr2", "lr2"]) == line


def test_one_folder_cannot_be_both(tmp_path):
    touch(tmp_path, "hr/a.png", "lr/a.png")
    (tmp_path / "link").symlink_to("hr")
    line = "data: expected LR images in another folder than HR, got link"
    for folders in (["link"], ["lr", "link"]):
        assert refusal(tmp_path, ["hr"], folders) == line


def test_folders_named_as_of_lr_images_are_no_hr(tmp_path):
    touch(
        tmp_path, "HR/0001.png", "LR/0001.png", "DIV2K_train_LR_bicubic/X2/0001x2.png", "X4/1.png",
        "train_sharp_bicubic/a.png", "bmw-x3/a.png", "color/a.png", "LRbicx3/a.png",
    )  # fmt: skip
    files, left_out = find_pairs([tmp_path], [], 2)
    assert [file.name for file in files] == ["HR/0001", "bmw-x3/a", "color/a"]
    assert left_out == {"in a folder named as of LR images": 5}
    # With nothing else there, they are what was meant.
    files, left_out = find_pairs([tmp_path / "DIV2K_train_LR_bicubic"], [], 2)
    assert [(file.name, file.lr) for file in files] == [("X2/0001x2", None)]
    assert not left_out


@pytest.mark.parametrize(
    "hr, lr",
    [("0001", "0001x2"), ("Img_001_SRF_2_HR", "Img_001_SRF_2_LR"), ("a/HR-1", "a/lr-1")],
)
def test_lr_images_beside_hr_images_are_no_hr(tmp_path, hr, lr):
    touch(tmp_path, f"{hr}.png", f"{lr}.png", "clr.png", "x2.png")
    pairs, left_out = find_pairs([tmp_path], [], 2)
    assert {pair.name for pair in pairs} == {hr, "clr", "x2"}
    assert left_out == {"named as LR of another image": 1}


def test_roles_of_other_folders_are_kept(tmp_path):
    touch(tmp_path, "a.png", "val/b.png")
    files, left_out = find_pairs([tmp_path], [], 2, {Path(tmp_path / "val"): "validation"})
    assert [file.name for file in files] == ["a"]
    assert left_out == {"folder of validation": 1}
