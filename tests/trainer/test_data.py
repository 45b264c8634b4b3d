import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.trainer_util import noise, write_images

from clsd_train import data
from clsd_train.config import DataConfig
from clsd_train.data import load_cached, load_training_pairs, read_pairs
from clsd_train.errors import UserError
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


@pytest.mark.parametrize("lr_name", ["a", "ax2"])
def test_given_lr_is_matched_by_stem(tmp_path, lr_name):
    hr = write_images(tmp_path / "hr", a=(20, 16))
    lr = write_images(tmp_path / "lr", **{lr_name: (10, 8)})
    (pair,) = read_pairs([hr], [lr], 2)
    np.testing.assert_array_equal(pair.lr, noise(10, 8))


def test_lr_of_another_name_or_size_is_named(tmp_path):
    hr = write_images(tmp_path / "hr", a=(20, 16))
    other = write_images(tmp_path / "other", b=(10, 8))
    with pytest.raises(UserError, match=r"LR image a or ax2 for .*a\.png"):
        list(read_pairs([hr], [other], 2))
    wrong = write_images(tmp_path / "wrong", a=(10, 9))
    with pytest.raises(BadImageError, match=r"wrong/a\.png: expected 10x8 .*, got 10x9"):
        list(read_pairs([hr], [wrong], 2))


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path):
    grey = noise(8, 8)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    opaque = np.dstack([expected, np.full((8, 8), 255, np.uint8)])
    for name, image in (
        ("grey", Image.fromarray(grey)),
        ("alpha", Image.fromarray(opaque)),
        ("palette", Image.fromarray(grey).convert("P")),
    ):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), expected)


def test_images_of_other_kinds_are_refused(tmp_path):
    Image.fromarray(noise(8, 8)[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([noise(8, 8), noise(8, 8)[..., 0]])).save(tmp_path / "clear.png")
    with pytest.raises(BadImageError, match=r"deep\.png: expected 8-bit .*, got mode I;16"):
        read_image(tmp_path / "deep.png")
    with pytest.raises(BadImageError, match=r"clear\.png: expected an opaque image"):
        read_image(tmp_path / "clear.png")


def test_image_beyond_the_pixel_limit_is_refused(tmp_path, monkeypatch):
    write_images(tmp_path, big=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match=r"big\.png: .* more pixels than Pillow opens"):
        read_image(tmp_path / "big.png")


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


def test_bad_images_are_skipped_with_a_warning(broken, tmp_path):
    options = DataConfig(train=broken, patch_size=8, on_bad_image="skip", cache=tmp_path / "cache")
    with pytest.warns(UserWarning) as caught:
        pairs = load_training_pairs(options, 2)
    assert [pair.name for pair in pairs] == ["good"]
    assert ["truncated.png" in str(w.message) for w in caught] == [True, False]
    assert "words.png" in str(caught[1].message)


def test_image_smaller_than_a_patch(tmp_path):
    hr = write_images(tmp_path / "hr", large=(40, 40), small=(40, 18))
    options = {"train": hr, "patch_size": 10, "cache": tmp_path / "cache"}
    with pytest.raises(UserError, match="small: expected HR of at least 20x20 pixels, got 40x18"):
        load_training_pairs(DataConfig(**options), 2)
    with pytest.warns(UserWarning, match="small: .*; skipped"):
        (pair,) = load_training_pairs(DataConfig(**options, on_bad_image="skip"), 2)
    assert pair.name == "large"


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="expected images in .*, got none"):
        find_images([tmp_path])


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


def test_cache_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_cached([write_images(tmp_path / "hr", a=(8, 8))], (), 2, DataConfig())
    assert len(list((tmp_path / "xdg" / "clsd-fast").iterdir())) == 2
