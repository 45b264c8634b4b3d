"""`clsd upscale` on files: which are read, what is kept of them, and what is written where."""

import numpy as np
import pytest
from PIL import ExifTags, Image
from support.trainer_util import contents, noise, refused, write_images

from clsd_train.checkpoint import load_student
from clsd_train.cli import main
from clsd_train.images import Picture, bicubic_upscale, read_picture
from clsd_train.upscale import plan_upscaling, upscale, upscale_files, upscale_picture


@pytest.fixture
def student(student_file):
    return load_student(student_file)


def run(student_file, *inputs, output, options=()):
    arguments = ["upscale", student_file, *inputs, "--output", output, *options]
    main([str(argument) for argument in arguments])


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_photograph_comes_out_upright_with_its_profile(tmp_path, student_file):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(noise(24, 36)).save(tmp_path / "a.jpg", exif=exif, icc_profile=b"profile")
    run(student_file, tmp_path / "a.jpg", output=tmp_path / "sr")
    with Image.open(tmp_path / "sr" / "a_x2.png") as result:
        assert result.size == (48, 72)
        assert result.info["icc_profile"] == b"profile"
        assert not result.getexif()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_channels_are_kept(tmp_path, student, mode, channels):
    pixels = np.dstack([noise(12, 10), noise(12, 10, 1)])[..., -channels:]
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.png")
    tasks, _ = plan_upscaling([tmp_path / "a.png"], tmp_path / "sr", 2, overwrite=False)
    (target,) = upscale_files(student, tasks)
    with Image.open(target) as image:
        assert image.mode == mode
    result = read_picture(target).pixels
    assert result.shape == (24, 20, channels)
    if channels in (2, 4):
        np.testing.assert_array_equal(result[..., -1:], bicubic_upscale(pixels[..., -1:], 2))
    colours = pixels[..., :3] if channels > 2 else pixels[..., :1].repeat(3, axis=2)
    expected = upscale(student, colours)
    if channels > 2:
        np.testing.assert_array_equal(result[..., :3], expected)
    else:
        luma = expected @ (0.299, 0.587, 0.114)
        assert np.abs(result[..., 0] - luma).max() < 1


def test_opaque_stays_opaque(student):
    pixels = np.dstack([noise(12, 10), np.full((12, 10), 255, np.uint8)])
    assert (upscale_picture(student, Picture(pixels)).pixels[..., 3] == 255).all()


def test_folders_below_the_given_one_are_kept(tmp_path, student_file, capsys):
    clips = tmp_path / "clips"
    for clip in "ab":
        write_images(clips / clip, **{"0001": (8, 8)})
    write_images(clips / ".hidden", **{"0001": (8, 8)})
    run(student_file, clips, output=tmp_path / "sr")
    assert written(tmp_path / "sr") == ["a/0001_x2.png", "b/0001_x2.png"]
    line = "clsd: upscale: 2 images used; left out: hidden 1"
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_counts_the_files_on_a_terminal(
    tmp_path, student_file, capsys, monkeypatch, terminal
):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    photos = write_images(tmp_path / "photos", a=(8, 8), b=(8, 8))
    run(student_file, photos, output=tmp_path / "sr")
    out, err = capsys.readouterr()
    assert out == "".join(f"wrote {tmp_path / 'sr' / name}_x2.png\n" for name in "ab")
    assert ("2/2" in err) is terminal
    assert err.endswith("clsd: upscale: 2 images used\n")


def test_own_outputs_are_no_inputs(tmp_path, student_file, capsys):
    photos = write_images(tmp_path / "photos", a=(8, 8), lone_x4=(8, 8))
    for output in (photos, photos, photos / "sr", photos / "sr", tmp_path / "other"):
        run(student_file, photos, output=output, options=["--overwrite"])
    made = ["a_x2.png", "lone_x4_x2.png"]
    expected = [*made, *(f"sr/{name}" for name in made), "a.png", "lone_x4.png"]
    assert written(photos) == sorted(expected)
    assert written(tmp_path / "other") == made
    lines = capsys.readouterr().err.splitlines()
    outputs = "clsd: upscale: 2 images used; left out: output of clsd upscale 2"
    assert lines[:2] == ["clsd: upscale: 2 images used", outputs]
    assert lines[3] == f"{outputs}, folder of the output 1"
    assert lines[4] == outputs.replace("upscale 2", "upscale 4")


def test_an_input_is_never_replaced(tmp_path, student_file, capsys):
    write_images(tmp_path, a=(8, 8), a_x2=(8, 8))
    inputs = (tmp_path / "a.png", tmp_path / "a_x2.png")
    arguments = ("upscale", student_file, *inputs, "--output", tmp_path, "--overwrite")
    line = refused(capsys, tmp_path, *arguments)
    assert line == f"clsd: upscale: expected outputs that are no inputs, got {inputs[1]}"


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_what_cannot_be_written_is_refused_first(tmp_path, student_file, capsys, option):
    write_images(tmp_path / "in", a=(8, 8), b=(8, 8))
    (tmp_path / "sr" / "b_x2.png").mkdir(parents=True)
    arguments = ("upscale", student_file, tmp_path / "in", "--output", tmp_path / "sr", *option)
    assert "b_x2.png, which is a folder" in refused(capsys, tmp_path, *arguments)
    arguments = ("upscale", student_file, tmp_path / "in", "--output", student_file, *option)
    assert f"expected a folder as output, got {student_file}: a file" in refused(
        capsys, tmp_path, *arguments
    )
    write_images(tmp_path / "in" / "clip", c=(8, 8))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "clip").write_text("precious")
    arguments = ("upscale", student_file, tmp_path / "in", "--output", tmp_path / "new", *option)
    line = refused(capsys, tmp_path, *arguments)
    assert line.endswith(f"expected a folder as output, got {tmp_path / 'new' / 'clip'}: a file")
    assert written(tmp_path / "sr") == []


@pytest.mark.parametrize("bad", ["CMYK", "sixteen bits", "pages", "empty", "link", "folder"])
def test_bad_input_is_named_and_nothing_written(tmp_path, student_file, capsys, bad):
    folder = write_images(tmp_path / "in", a=(8, 8))
    path = folder / "b.tif"
    if bad == "folder":
        path = tmp_path / "none"
        path.mkdir()
    elif bad == "link":
        path.symlink_to("nowhere")
    elif bad == "empty":
        path.write_bytes(b"")
    elif bad == "pages":
        frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(2)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif bad == "sixteen bits":
        Image.fromarray(noise(8, 8)[..., 0].astype(np.uint16)).save(path)
    else:
        Image.fromarray(noise(8, 8)).convert(bad).save(path)
    given = [path, folder] if bad == "folder" else [folder]
    line = refused(capsys, tmp_path, "upscale", student_file, *given, "--output", tmp_path / "sr")
    assert str(path) in line
    assert not (tmp_path / "sr").exists()


def test_what_is_left_out_of_a_file_is_said_once(tmp_path, student_file, capsys):
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(2)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    run(student_file, tmp_path / "a.jpg", output=tmp_path / "sr")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"clsd: warning: data: {tmp_path / 'a.jpg'}: 1 of the 2 pictures in it left out"
    ]
    before = contents(tmp_path)
    run(student_file, tmp_path / "a.jpg", output=tmp_path / "sr", options=["--overwrite"])
    assert contents(tmp_path) == before
    assert capsys.readouterr().err.splitlines() == lines
