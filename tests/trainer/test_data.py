import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from support.trainer_util import noise, write_images

from clsd_train import data
from clsd_train.config import DataConfig
from clsd_train.data import load_cached, load_training_pairs, read_pairs
from clsd_train.errors import Notice, UserError
from clsd_train.images import (
    BadImageError,
    bicubic_downscale,
    bicubic_upscale,
    crop_to_multiple,
    find_images,
    read_image,
)


def only(folder, scale=2, **options):
    (pair,) = read_pairs([folder], (), scale, **options)
    return pair


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscale_is_matlab_in_every_pixel(image_data, scale):
    set5 = image_data / "test" / "Set5"
    hr_paths = find_images([set5 / "HR"])
    assert len(hr_paths) == 5
    for path in hr_paths:
        (matlab,) = (set5 / f"LR_matlab_x{scale}").glob(f"{path.stem}*")
        ours = bicubic_downscale(crop_to_multiple(read_image(path), scale), scale)
        np.testing.assert_array_equal(ours, read_image(matlab))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_resizing_keeps_sizes_and_flat_colour(scale):
    flat = np.full((12 * scale, 7 * scale, 3), (3, 128, 255), np.uint8)
    small = bicubic_downscale(flat, scale)
    np.testing.assert_array_equal(small, flat[:12, :7])
    np.testing.assert_array_equal(bicubic_upscale(small, scale), flat)


def test_upscale_inside_is_the_cubic_of_pytorch():
    # Without a border and the rounding between the passes, one interpolation does the same.
    image = noise(20, 24) // 4 * 2 + 64
    plain = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(),
        scale_factor=2, mode="bicubic", antialias=True,
    )[0].permute(1, 2, 0).numpy()  # fmt: skip
    difference = np.abs(bicubic_upscale(image, 2) - plain)[8:-8, 8:-8]
    assert difference.max() <= 1.2  # half a level per pass, the first amplified by the second


def test_hr_is_cropped_to_a_multiple_of_the_scale(tmp_path):
    pair = only(write_images(tmp_path / "hr", a=(32, 29)), scale=3)
    assert pair.hr.shape == (30, 27, 3)
    assert pair.lr.shape == (10, 9, 3)
    np.testing.assert_array_equal(pair.hr, noise(32, 29)[:30, :27])


def test_clips_with_equal_frame_names_are_trained_on_their_own_lr(tmp_path):
    for clip in range(3):
        hr = write_images(tmp_path / "HR" / f"{clip}", **{"0": (24, 24 + clip), "1": (28, 24)})
        (tmp_path / "LR" / f"{clip}").mkdir(parents=True)
        for path in hr.iterdir():
            lr = Image.fromarray(bicubic_downscale(crop_to_multiple(read_image(path), 2), 2))
            lr.save(tmp_path / "LR" / f"{clip}" / path.name)
    folders = {"train": tmp_path / "HR", "train_lr": tmp_path / "LR"}
    data = DataConfig(**folders, patch_size=8, cache=tmp_path / "cache")
    pairs = load_training_pairs(data, 2)
    assert [pair.name for pair in pairs] == [f"{clip}/{frame}" for clip in "012" for frame in "01"]
    for pair in pairs:
        np.testing.assert_array_equal(bicubic_downscale(pair.hr, 2), pair.lr)


def test_lr_of_another_name_or_size_is_named(tmp_path):
    hr = write_images(tmp_path / "hr", a=(20, 16))
    other = write_images(tmp_path / "other", b=(10, 8))
    with pytest.raises(UserError, match=r"LR image a or ax2 for .*a\.png"):
        list(read_pairs([hr], [other], 2))
    wrong = write_images(tmp_path / "wrong", a=(10, 9))
    with pytest.raises(BadImageError, match=r"wrong/a\.png: expected 10x8 .*, got 10x9"):
        list(read_pairs([hr], [wrong], 2))


@pytest.fixture
def broken(tmp_path):
    """A folder of a good, a truncated and a text file."""
    folder = write_images(tmp_path / "hr", good=(40, 40), truncated=(40, 40))
    path = folder / "truncated.png"
    path.write_bytes(path.read_bytes()[:2000])
    (folder / "words.png").write_text("no image")
    return folder


def test_bad_image_is_refused_by_name_and_leaves_no_cache(broken, tmp_path):
    options = DataConfig(train=broken, patch_size=8, cache=tmp_path / "cache")
    with pytest.raises(BadImageError, match=r"truncated\.png: expected an image"):
        load_training_pairs(options, 2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_bad_images_are_skipped_with_a_warning_at_each_use(broken, tmp_path):
    (broken / "zz.png").symlink_to("nowhere")
    options = DataConfig(train=broken, patch_size=8, on_bad_image="skip", cache=tmp_path / "cache")
    for _ in ("written", "read"):
        with pytest.warns(Notice) as caught:
            pairs = load_training_pairs(options, 2)
        assert [pair.name for pair in pairs] == ["good"]
        named = [str(warning.message).split(": ")[1] for warning in caught]
        assert named == [str(broken / f"{name}.png") for name in ("truncated", "words", "zz")]
        assert all(str(warning.message).endswith("; skipped") for warning in caught)
        assert pairs.summary("training") == "training: 1 image used; left out: skipped 3"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_dangling_link_is_refused_by_name(tmp_path):
    hr = write_images(tmp_path / "hr", a=(40, 40))
    (hr / "b.png").symlink_to("nowhere")
    options = DataConfig(train=hr, patch_size=8, cache=tmp_path / "cache")
    with pytest.raises(BadImageError, match=r"b\.png: expected an image, got a link to nothing"):
        load_training_pairs(options, 2)


def test_pages_and_frames_are_no_training_image(tmp_path):
    hr = write_images(tmp_path / "hr", a=(40, 40))
    frames = [Image.fromarray(noise(40, 40, seed)) for seed in range(3)]
    frames[0].save(hr / "stack.tif", save_all=True, append_images=frames[1:])
    options = {"train": hr, "patch_size": 8, "cache": tmp_path / "cache"}
    line = r"stack\.tif: expected one picture, got 3 pages or frames"
    with pytest.raises(BadImageError, match=line):
        load_training_pairs(DataConfig(**options), 2)
    with pytest.warns(Notice, match=line):
        assert len(load_training_pairs(DataConfig(**options, on_bad_image="skip"), 2)) == 1


def test_folders_of_a_run_are_no_part_of_each_other(tmp_path):
    hr = write_images(tmp_path / "hr", a=(40, 40))
    lr = write_images(hr / "small", a=(20, 20))
    val = write_images(hr / "val", a=(44, 44))
    write_images(hr / "run" / "plots", p=(40, 40))
    write_images(hr / ".ipynb_checkpoints", a=(40, 40))
    options = {"train": hr, "val": val, "patch_size": 8, "cache": hr / "cache"}
    pairs = load_training_pairs(DataConfig(**options, train_lr=lr), 2, output=hr / "run")
    assert [pair.name for pair in pairs] == ["a"]
    assert pairs.left_out == {
        "hidden": 1,
        "folder of LR images": 1,
        "folder of validation images": 1,
        "folder of the output": 1,
    }
    (pair,) = load_cached([val], [], 2, DataConfig(**options))
    assert pair.hr.shape == (44, 44, 3)


def test_image_smaller_than_a_patch(tmp_path):
    hr = write_images(tmp_path / "hr", large=(40, 40), small=(40, 18))
    options = {"train": hr, "patch_size": 10, "cache": tmp_path / "cache"}
    with pytest.raises(UserError, match="small: expected HR of at least 20x20 pixels, got 40x18"):
        load_training_pairs(DataConfig(**options), 2)
    with pytest.warns(Notice, match="small: .*; skipped"):
        pairs = load_training_pairs(DataConfig(**options, on_bad_image="skip"), 2)
    assert [pair.name for pair in pairs] == ["large"]
    assert pairs.left_out == {"smaller than a patch": 1}


def test_turned_hr_is_cut_down_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "hr").mkdir()
    Image.fromarray(noise(16, 24)).save(tmp_path / "hr" / "a.png", exif=exif)
    pair = only(tmp_path / "hr")
    np.testing.assert_array_equal(pair.hr, np.rot90(noise(16, 24), -1))
    assert pair.lr.shape == (12, 8, 3)


def test_cache_gives_the_same_pixels_and_decodes_once(tmp_path, monkeypatch):
    hr = write_images(tmp_path / "hr", a=(20, 16), b=(12, 30))
    options = DataConfig(cache=tmp_path / "cache")
    expected = list(read_pairs([hr], (), 2))
    load_cached([hr], (), 2, options)
    monkeypatch.setattr(data, "read_image", None)  # a second decoding would fail
    for pair, other in zip(load_cached([hr], (), 2, options), expected, strict=True):
        assert pair.name == other.name
        np.testing.assert_array_equal(pair.lr, other.lr)
        np.testing.assert_array_equal(pair.hr, other.hr)
        assert not pair.hr.flags.writeable


def test_changed_source_scale_or_role_makes_a_new_cache(tmp_path):
    options = DataConfig(cache=tmp_path / "cache")
    hr = write_images(tmp_path / "hr", a=(24, 16))
    lr = write_images(tmp_path / "lr", a=(12, 8))
    assert load_cached([hr], (), 2, options)[0].lr.shape == (12, 8, 3)
    assert load_cached([hr], (), 4, options)[0].lr.shape == (6, 4, 3)
    # The same files in the same order, once as two HR images and once as a pair.
    assert len(load_cached([hr, lr], (), 2, options)) == 2
    assert len(load_cached([hr], [lr], 2, options)) == 1
    write_images(tmp_path / "hr", a=(28, 16))
    assert load_cached([hr], (), 2, options)[0].lr.shape == (14, 8, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index, pixels: pixels.unlink(),
        lambda index, pixels: pixels.write_bytes(pixels.read_bytes()[:-1]),
        lambda index, pixels: pixels.write_bytes(pixels.read_bytes() + b"x"),
        lambda index, pixels: pixels.write_bytes(b""),
        lambda index, pixels: index.write_text(index.read_text()[:-1]),
        lambda index, pixels: index.write_text(index.read_text().replace("[0,", "[null,")),
        lambda index, pixels: index.write_text(index.read_text().replace("[0,", "[9999999,")),
        lambda index, pixels: index.write_bytes(b"\xff\0"),
        lambda index, pixels: index.write_text("[]"),
        lambda index, pixels: index.write_text("[" * 100_000),
    ],
)
def test_damaged_cache_is_made_again(tmp_path, damage):
    hr = write_images(tmp_path / "hr", a=(20, 16))
    options = DataConfig(cache=tmp_path / "cache")
    expected = load_cached([hr], (), 2, options)[0].hr.copy()
    index, pixels = (next((tmp_path / "cache").glob(f"*{s}")) for s in (".json", ".bin"))
    damage(index, pixels)
    with pytest.warns(Notice, match=f"expected a whole cache, writing {index} again"):
        load_cached([hr], (), 2, options)
    np.testing.assert_array_equal(load_cached([hr], (), 2, options)[0].hr, expected)


def test_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    hr = write_images(tmp_path / "hr", a=(20, 16))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"write the cache .*file/cache, got Not a directory"):
        load_cached([hr], (), 2, DataConfig(cache=tmp_path / "file" / "cache"))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(data.Path, "home", no_home)
    with pytest.raises(UserError, match=r"data\.cache: expected a folder, got none and no home"):
        load_cached([hr], (), 2, DataConfig())


def test_cache_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_cached([write_images(tmp_path / "hr", a=(8, 8))], (), 2, DataConfig())
    assert len(list((tmp_path / "xdg" / "clsd-fast").iterdir())) == 2


def test_file_that_became_readable_is_no_longer_skipped(tmp_path, monkeypatch):
    hr = write_images(tmp_path / "hr", a=(20, 16), b=(20, 16))
    options = DataConfig(cache=tmp_path / "cache", on_bad_image="skip")

    def locked(path):
        if path.name == "b.png":
            raise BadImageError("data: b.png: expected an image, got none for you")
        return read_image(path)

    with monkeypatch.context() as patch, pytest.warns(Notice, match="none for you; skipped"):
        patch.setattr(data, "read_image", locked)
        assert len(load_cached([hr], (), 2, options)) == 1
    before = (hr / "b.png").stat().st_ctime_ns
    while (hr / "b.png").stat().st_ctime_ns == before:  # a clock of few milliseconds
        (hr / "b.png").chmod(0o600)
    assert len(load_cached([hr], (), 2, options)) == 2
