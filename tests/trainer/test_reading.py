"""Files of weights: whose they are, and how they are read where the file does not say so."""

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.trainer_util import noise, refused
from torch import nn

from clsd_fast import EDSR
from clsd_train.architecture import MEAN_SHIFT
from clsd_train.checkpoint import load_student, save_student
from clsd_train.cli import main
from clsd_train.errors import Notice, UserError
from clsd_train.images import bicubic_upscale, read_image
from clsd_train.upscale import upscale

BLOCKS = 6


def identity(convolution, gain, bias=0.0):
    """Let a convolution multiply each channel, or the pixels that are shuffled out of it."""
    out_channels, in_channels = convolution.weight.shape[:2]
    nn.init.zeros_(convolution.weight)
    nn.init.constant_(convolution.bias, bias)
    repeated = out_channels // in_channels if out_channels > in_channels > 3 else 1
    for k in range(out_channels):
        if k // repeated < in_channels:
            convolution.weight.data[k, k // repeated, 1, 1] = gain


def enlarging(res_scale, sign=1.0, bias=1000.0):
    """An EDSR that enlarges by the nearest pixel, if each block adds res_scale times its input.

    A block's branch is sign * relu(sign * x + bias) - sign * bias: x, on that side of the bias.
    """
    student = EDSR(2, BLOCKS, 4, res_scale)
    identity(student.head[0], 1.0)
    for block in student.body[:-1]:
        identity(block.body[0], sign, bias)
        identity(block.body[2], sign, -sign * bias)
    identity(student.body[-1], 1.0)
    identity(student.tail[0][0], 1.0)
    identity(student.tail[1], 1 / ((1 + res_scale) ** BLOCKS + 1))
    return student


def saved(tmp_path, student):
    path = tmp_path / "network.pt"
    torch.save(student.state_dict(), path)
    return path


def test_an_enlarging_student_enlarges():
    image = noise(12, 12)
    np.testing.assert_array_equal(upscale(enlarging(0.1), image), image.repeat(2, 0).repeat(2, 1))


def test_another_res_scale_is_asked_for(tmp_path, capsys):
    path = saved(tmp_path, enlarging(0.1))
    line = refused(capsys, tmp_path, "info", path)
    assert "--res-scale 0.1" in line and "--res-scale 1 " in line
    with pytest.warns(Notice, match="--value-range 255 --mean-shift is assumed"):
        student = load_student(path, res_scale=0.1)
    assert student.res_scale == 0.1
    image = noise(12, 12)
    np.testing.assert_array_equal(upscale(student, image), image.repeat(2, 0).repeat(2, 1))


def test_another_value_range_is_asked_for(tmp_path):
    """As super-image does it: values in 0..1, and no mean shift although its keys are there."""
    path = saved(tmp_path, enlarging(1.0, sign=-1.0, bias=2.0**BLOCKS))
    with pytest.raises(UserError, match="--value-range 1 "):
        load_student(path)
    student = load_student(path, res_scale=1.0, value_range=1.0, mean_shift=False)
    image = noise(12, 12)
    np.testing.assert_array_equal(upscale(student, image), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("res_scale", [1.0, 0.3])
def test_an_option_is_never_questioned(tmp_path, res_scale):
    path = saved(tmp_path, enlarging(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = load_student(path, res_scale, value_range=255.0, mean_shift=True)
    assert student.res_scale == res_scale


def test_what_is_right_is_assumed_with_a_word(tmp_path, capsys):
    path = saved(tmp_path, enlarging(1.0))
    main(["info", str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clsd: warning: ")
    assert line.endswith("--res-scale 1 --value-range 255 --mean-shift is assumed")


def test_the_word_does_not_depend_on_warnings(tmp_path, capsys):
    path = saved(tmp_path, EDSR(2, 1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["info", str(path)])
    assert "--res-scale" in capsys.readouterr().err


def test_files_of_ours_say_it_all(tmp_path):
    student = EDSR(2, 2, 8, 0.1, value_range=1.0)
    student.sub_mean = student.add_mean = nn.Identity()
    save_student(student, tmp_path / "s.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_student(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(upscale(loaded, noise(9, 9)), upscale(student, noise(9, 9)))


@pytest.mark.parametrize("command", ["eval", "upscale", "info"])
def test_commands_take_how_it_is_read(tmp_path, capsys, command):
    torch.manual_seed(0)
    student = EDSR(2, 2, 8, 0.25).eval()
    path, image = saved(tmp_path, student), tmp_path / "hr" / "a.png"
    image.parent.mkdir()
    Image.fromarray(noise(32, 32)).save(image)
    rest = {"eval": [image.parent], "upscale": [image, "--output", tmp_path], "info": []}[command]
    reading = ["--res-scale", "0.25", "--value-range", "255", "--mean-shift"]
    main([str(word) for word in (command, *reading, path, *rest)])
    captured = capsys.readouterr()
    assert captured.err == ("clsd: eval: 1 image used\n" if command == "eval" else "")
    if command == "info":
        assert "0.25" in captured.out
    if command == "upscale":
        expected = upscale(student, noise(32, 32))
        np.testing.assert_array_equal(read_image(tmp_path / "a_x2.png"), expected)


def test_a_mean_shift_follows_the_value_range(tmp_path):
    path = saved(tmp_path, enlarging(0.1))
    student = load_student(path, 0.1, 1.0, True)
    expected = EDSR(2, 1, 4, value_range=1.0)
    torch.testing.assert_close(student.sub_mean.bias, expected.sub_mean.bias)
    torch.testing.assert_close(student.add_mean.bias, expected.add_mean.bias)


def test_a_file_without_a_mean_shift(tmp_path):
    state = {k: v for k, v in enlarging(1.0).state_dict().items() if k not in MEAN_SHIFT}
    torch.save(state, tmp_path / "n.pt")
    with pytest.raises(UserError, match=r"none of sub_mean.bias .*\(--no-mean-shift"):
        load_student(tmp_path / "n.pt")
    student = load_student(tmp_path / "n.pt", 1.0, 255.0, mean_shift=False)
    assert upscale(student, noise(8, 8)).shape == bicubic_upscale(noise(8, 8), 2).shape


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("body.0.body.0.body.3.conv_du.0.weight", "an RCAN"),
        ("layers.0.residual_group.blocks.0.norm1.weight", "a SwinIR"),
        ("body.0.rdb1.conv1.weight", "an RRDBNet"),
        ("SFENet1.weight", "an RDN"),
        ("conv_first.weight", "another network of BasicSR"),
    ],
)
def test_other_networks_are_called_by_their_names(tmp_path, key, name):
    torch.save({**EDSR(2, 1, 4).state_dict(), key: torch.zeros(1)}, tmp_path / "n.pt")
    with pytest.raises(UserError, match=f"expected an EDSR by .* got {name}"):
        load_student(tmp_path / "n.pt")


def test_a_pickled_model_is_said_to_be_one(tmp_path, capsys):
    torch.save(nn.Linear(1, 1), tmp_path / "n.pt")
    line = refused(capsys, tmp_path, "info", tmp_path / "n.pt")
    assert "got Python objects (torch.nn.modules.linear.Linear)" in line
    assert "save model.state_dict()" in line
    assert line.isprintable()


def test_a_torchscript_program_is_said_to_be_one(tmp_path, capsys):
    torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)).save(tmp_path / "n.pt")
    line = refused(capsys, tmp_path, "info", tmp_path / "n.pt")
    assert "got a TorchScript program" in line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((4, 3, 3, 3), torch.nan), "head.0.weight not finite"),
        (torch.zeros(4, 3, 3, 3, dtype=torch.int64), "head.0.weight of another type"),
        (torch.zeros(4, 3, 3, 3).to_sparse(), "head.0.weight of another type"),
        (torch.zeros(4, 3, 3, 3, device="meta"), "head.0.weight of another type"),
    ],
)
def test_weights_that_compute_nothing_are_refused(tmp_path, value, words):
    torch.save({**EDSR(2, 1, 4).state_dict(), "head.0.weight": value}, tmp_path / "n.pt")
    with pytest.raises(UserError, match=words):
        load_student(tmp_path / "n.pt")


def test_weights_of_16_bits_are_read_as_32(tmp_path):
    state = {k: v.bfloat16() for k, v in EDSR(2, 1, 4).state_dict().items()}
    torch.save(state, tmp_path / "n.pt")
    with pytest.warns(Notice):
        student = load_student(tmp_path / "n.pt")
    assert student.head[0].weight.dtype is torch.float32
    assert torch.equal(student.head[0].weight, state["head.0.weight"].float())


@pytest.mark.parametrize(
    ("name", "text"),
    [("res_scale", "{"), ("res_scale", "-1"), ("value_range", "Infinity"), ("scale", "3"),
     ("num_blocks", "1000000000"), ("channels", '"4"'), ("mean_shift", "1")],
)  # fmt: skip
def test_damaged_metadata_is_named(tmp_path, name, text):
    path = tmp_path / "s.safetensors"
    save_file(EDSR(2, 1, 4).state_dict(), path, {"clsd_fast": "0.1.0", name: text})
    with pytest.raises(UserError, match=f"expected {name} .*metadata of {path}, got"):
        load_student(path)


@pytest.mark.parametrize("kind", ["folder", "missing"])
def test_what_is_no_file_is_said(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "n.pt"
    words = {"folder": "a folder", "missing": "no such file"}[kind]
    with pytest.raises(UserError, match=f"expected a file, got {path}: {words}"):
        load_student(path)


def test_a_file_that_grows_in_memory_is_refused(tmp_path, capsys):
    torch.save(EDSR(2, 1, 4).state_dict(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as saved_file,
        zipfile.ZipFile(tmp_path / "n.pt", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for record in saved_file.infolist():
            content = saved_file.read(record)
            compressed.writestr(
                record.filename, bytes(2**20) if "data/" in record.filename else content
            )
    assert "n.pt: compressed" in refused(capsys, tmp_path, "info", tmp_path / "n.pt")


class Command:
    """What a pickle runs when it is loaded by a reader that trusts it."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_runs_nothing(tmp_path, capsys, protocol):
    content = {"head.0.weight": Command(tmp_path / "made")}
    torch.save(content, tmp_path / "n.pt", pickle_protocol=protocol)
    (tmp_path / "p.pt").write_bytes(pickle.dumps(content, protocol))
    for name in ("n.pt", "p.pt"):
        assert f"{name}" in refused(capsys, tmp_path, "info", tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_containers_of_themselves_are_refused(tmp_path, capsys):
    laughs = [torch.zeros(1)]
    for _ in range(60):
        laughs = [laughs] * 9
    torch.save({"state_dict": laughs}, tmp_path / "n.pt")
    line = refused(capsys, tmp_path, "info", tmp_path / "n.pt")
    assert "expected a state_dict, got another object" in line
