"""What becomes of each kind of image file. PNG files that Pillow cannot write are made by hand."""

import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageFile
from support.trainer_util import noise, write_images

from clsd_train.errors import Notice
from clsd_train.images import BadImageError, read_image, read_picture

GREY = noise(8, 8)[..., 0]
TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}
GREY_PNG, RGB_PNG, PALETTE_PNG, GREY_ALPHA_PNG, RGBA_PNG = 0, 2, 3, 4, 6


def chunk(kind, data):
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(depth, kind, rows, extra=b"", size=None):
    """A PNG file of 8 pixels a row, each row its packed bytes."""
    width, height = size or (8, len(rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    header, data, end = (chunk(*part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + end


def refusal(folder, name, content):
    """What a file of this content is called."""
    path = folder / name
    path.write_bytes(content)
    return said_of(path)


def said_of(path):
    with pytest.raises(BadImageError) as error:
        read_picture(path)
    assert "\n" not in str(error.value)
    start = f"data: {path}: "
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.kron(noise(3, 4), np.ones((8, 8, 1), np.uint8))  # flat blocks survive a JPEG
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {"lossless": True}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    expected = TURNS[orientation](pixels).astype(int)
    assert read_image(path).shape == expected.shape
    assert np.abs(read_image(path) - expected).max() <= (12 if suffix == "jpg" else 0)


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path):
    expected = np.repeat(GREY[..., None], 3, axis=2)
    opaque = np.dstack([expected, np.full((8, 8), 255, np.uint8)])
    for name, image in (
        ("grey", Image.fromarray(GREY)),
        ("alpha", Image.fromarray(opaque)),
        ("grey and alpha", Image.fromarray(opaque[..., 2:])),
        ("palette", Image.fromarray(GREY).convert("P")),
    ):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), expected)


def test_channels_are_kept(tmp_path):
    rgb, alpha = noise(8, 8), noise(8, 8, 1)[..., 0]
    for name, pixels in (
        ("grey", GREY),
        ("grey_alpha", np.dstack([GREY, alpha])),
        ("rgb", rgb),
        ("rgba", np.dstack([rgb, alpha])),
    ):
        for suffix in ("png", "tif"):
            path = tmp_path / f"{name}.{suffix}"
            Image.fromarray(pixels).save(path)
            expected = pixels.reshape(8, 8, -1)
            np.testing.assert_array_equal(read_picture(path).pixels, expected)
    black_and_white = Image.fromarray(GREY > 127)
    black_and_white.save(tmp_path / "1.png")
    expected = np.where(GREY > 127, 255, 0)[..., None]
    np.testing.assert_array_equal(read_picture(tmp_path / "1.png").pixels, expected)


def test_fewer_bits_are_widened(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, GREY_PNG, [b"\x01\x23\x45\xff"]))
    expected = [0, 17, 34, 51, 68, 85, 255, 255]
    assert read_picture(tmp_path / "a.png").pixels[0, :, 0].tolist() == expected


def test_transparency_of_a_colour_or_palette_is_alpha(tmp_path):
    rgb = noise(8, 8)
    key = chunk(b"tRNS", struct.pack(">HHH", *rgb[0, 0]))
    grey_key = chunk(b"tRNS", struct.pack(">H", GREY[0, 0]))
    palette = chunk(b"PLTE", rgb.tobytes()) + chunk(b"tRNS", b"\0")
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for name, content, channels in (
        ("rgb", png(8, RGB_PNG, rgb.reshape(8, -1), key), 4),
        ("grey", png(8, GREY_PNG, GREY, grey_key), 2),
        ("palette", png(8, PALETTE_PNG, indices, palette), 4),
    ):
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        pixels = read_picture(path).pixels
        assert pixels.shape == (8, 8, channels)
        color = rgb if channels == 4 else GREY[..., None]
        np.testing.assert_array_equal(pixels[..., :-1], color)
        assert pixels[0, 0, -1] == 0
        assert pixels[..., -1].max() == 255
        with pytest.raises(BadImageError, match=f"{name}.png: expected an opaque image"):
            read_image(path)
    # A key that no pixel has is no transparency.
    unused = chunk(b"tRNS", struct.pack(">H", 1))
    (tmp_path / "opaque.png").write_bytes(png(8, GREY_PNG, np.zeros((8, 8), np.uint8), unused))
    assert not read_image(tmp_path / "opaque.png").any()


@pytest.mark.parametrize(
    ("kind", "channels"), [(GREY_PNG, 1), (RGB_PNG, 3), (GREY_ALPHA_PNG, 2), (RGBA_PNG, 4)]
)
def test_sixteen_bits_are_refused(tmp_path, kind, channels):
    rows = np.random.default_rng(0).integers(0, 256, (8, 16 * channels), dtype=np.uint8)
    line = refusal(tmp_path, "a.png", png(16, kind, rows))
    assert line.startswith("expected 8-bit grey or RGB, got mode ")
    assert line.endswith(" of 16 bits per channel")


@pytest.mark.parametrize(
    ("dtype", "channels", "got"),
    [
        ("u2", 1, "8-bit grey or RGB, got mode I;16 of 16 bits per channel"),
        ("u2", 3, "8-bit grey or RGB, got mode RGB of 16 bits per channel"),
        ("u2", 4, "8-bit grey or RGB, got mode RGBA of 16 bits per channel"),
        ("i1", 1, "8-bit grey or RGB, got mode L of signed or floating 8 bits per channel"),
        ("i2", 1, "8-bit grey or RGB, got mode I of signed or floating 16 bits per channel"),
        ("f4", 1, "8-bit grey or RGB, got mode F of signed or floating 32 bits per channel"),
        ("f2", 1, "an image, got a TIFF file that Pillow cannot read (unknown pixel mode)"),
        ("f4", 3, "an image, got a TIFF file that Pillow cannot read (unknown pixel mode)"),
        ("u1", 5, "8-bit grey or RGB, got 5 channels, of which Pillow reads 3"),
    ],
)
def test_tiff_of_other_numbers_is_refused(tmp_path, dtype, channels, got):
    photometric = "rgb" if channels > 2 else "minisblack"
    pixels = np.ones((8, 8, channels)[: 2 + (channels > 1)], dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric)
    assert said_of(tmp_path / "a.tif") == f"expected {got}"


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "I", "F"])
def test_other_colours_are_refused(tmp_path, mode):
    source = Image.fromarray(noise(8, 8) if mode in ("CMYK", "LAB") else GREY)
    source.convert(mode).save(tmp_path / "a.tif")
    assert said_of(tmp_path / "a.tif").startswith("expected 8-bit grey or RGB, got mode " + mode)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_pages_and_frames_are_refused(tmp_path, name):
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert said_of(tmp_path / name) == "expected one picture, got 3 pages or frames"


def test_further_pictures_of_a_photograph_are_said(tmp_path):
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    with pytest.warns(Notice, match=r"a\.jpg: 2 of the 3 pictures in it left out"):
        assert read_image(tmp_path / "a.jpg").shape == (8, 8, 3)


def test_broken_metadata_is_said_and_the_image_used(tmp_path):
    rows = noise(8, 8).reshape(8, -1)
    (tmp_path / "a.png").write_bytes(png(8, RGB_PNG, rows, chunk(b"eXIf", b"rubbish!")))
    with pytest.warns(Notice, match=r"a\.png: EXIF that cannot be read, and so no orientation"):
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise(8, 8))


def test_profile_is_kept(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", icc_profile=b"a profile")
    assert read_picture(tmp_path / "a.jpg").icc_profile == b"a profile"


def test_files_that_are_no_images_are_named(tmp_path):
    image = Image.fromarray(noise(8, 8))
    for suffix in ("gif", "jp2", "ppm"):
        image.save(tmp_path / f"a.{suffix}")
        (tmp_path / f"a.{suffix}").rename(tmp_path / f"{suffix}.png")
        other = "expected an image, got a file that is no BMP, JPEG, PNG, TIFF or WebP image"
        assert said_of(tmp_path / f"{suffix}.png") == other
    assert refusal(tmp_path, "a.png", b"no image") == other
    assert refusal(tmp_path, "a.png", b"") == "expected an image, got an empty file"
    for content, name in ((b"II*\0", "TIFF"), (b"BM", "BMP"), (b"\x89PNG\r\n\x1a\n", "PNG")):
        line = f"expected an image, got a {name} file that Pillow cannot read ("
        assert refusal(tmp_path, "a.png", content).startswith(line)


def test_what_is_no_regular_file_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert said_of(tmp_path / "folder.png") == "expected an image, got no regular file"
    assert said_of(tmp_path / "none.png") == "expected an image, got no such file"
    (tmp_path / "link.png").symlink_to("nowhere")
    assert said_of(tmp_path / "link.png") == "expected an image, got a link to nothing"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "Too many levels of symbolic links" in said_of(tmp_path / "loop.png")
    assert "File name too long" in said_of(tmp_path / ("n" * 300 + ".png"))
    assert "embedded null byte" in said_of(tmp_path / "a\0b.png")


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert said_of(tmp_path / "pipe.png") == "expected an image, got no regular file"


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (
            PermissionError(13, "Permission denied"),
            "a file that cannot be read (Permission denied)",
        ),
        (MemoryError(), "one that is too large for the memory"),
        (KeyError(7), "a broken one (7)"),
        (IndexError(), "a broken one (IndexError)"),
        (OSError("two\nlines"), "a broken one (two lines)"),
    ],
)
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error, got):
    write_images(tmp_path, a=(8, 8))

    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert said_of(tmp_path / "a.png") == f"expected an image, got {got}"


def test_image_beyond_the_pixel_limit_is_refused(tmp_path, monkeypatch, recwarn):
    write_images(tmp_path, big=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert said_of(tmp_path / "big.png").endswith("one of more pixels than Pillow opens")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(tmp_path / "big.png").shape == (40, 40, 3)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (60000, 60000)])
def test_sizes_that_hold_no_image(tmp_path, size):
    content = png(8, RGB_PNG, [bytes(24)], size=size)
    assert refusal(tmp_path, "a.png", content).startswith("expected an image, got ")


def test_compressed_tiff_that_is_damaged_is_refused_in_silence(tmp_path, capfd):
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[100:140] = bytes(40)
    assert refusal(tmp_path, "a.tif", content).startswith("expected an image, got a broken one (")
    # Here libtiff goes on with the next line.
    Image.fromarray(noise(40, 40)[..., 0] > 127).save(tmp_path / "b.tif", compression="group4")
    content = bytearray((tmp_path / "b.tif").read_bytes())
    content[108:116] = bytes(8)
    assert "code word" in refusal(tmp_path, "b.tif", content)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::clsd_train.errors.Notice")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_random_damage_never_ends_in_another_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(16, 16)).save(path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for place in generator.integers(0, min(len(content), 200), 4):
            content[place] = generator.integers(0, 256)
        path.write_bytes(content[: generator.integers(1, 2 * len(content))])
        try:
            assert read_picture(path).pixels.dtype == np.uint8
        except BadImageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50
