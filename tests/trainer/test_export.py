"""`clsd export` and `clsd convert`: what others read is the student."""

import json

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from support.plain_edsr import BasicSREDSR, PlainEDSR
from support.trainer_util import refused

from clsd_fast import EDSR
from clsd_train import export as exporting
from clsd_train.checkpoint import load_student, save_student
from clsd_train.cli import main

SIZES = [(1, 5, 7), (2, 1, 1), (1, 40, 33)]


def make_student(scale=2, res_scale=0.5, value_range=255.0):
    torch.manual_seed(0)
    return EDSR(scale, 2, 8, res_scale, value_range).eval()


def export(tmp_path, student, name, *options):
    save_student(student, tmp_path / "student.safetensors")
    arguments = ["export", tmp_path / "student.safetensors", "--output", tmp_path / name, *options]
    main([str(argument) for argument in arguments])
    return tmp_path / name


def images(student, size):
    batch, height, width = size
    return student.value_range * torch.rand(batch, 3, height, width)


def assert_same_images(student, program, white=1.0):
    """``program`` takes images in 0..white."""
    for size in SIZES:
        lr = images(student, size)
        factor = white / student.value_range
        with torch.no_grad():
            sr, expected = program(lr * factor), student(lr) * factor
        torch.testing.assert_close(sr, expected, rtol=0, atol=1e-5 * white)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_basicsr_reads_what_is_written_for_it(tmp_path, capsys, scale, suffix):
    student = make_student(scale)
    path = export(tmp_path, student, f"a{suffix}", "--naming", "basicsr")
    options = json.loads(capsys.readouterr().out.splitlines()[0].removeprefix("network_g: "))
    assert options["type"] == "EDSR"
    assert (options["num_in_ch"], options["num_out_ch"]) == (3, 3)
    network = BasicSREDSR(
        options["upscale"],
        options["num_block"],
        options["num_feat"],
        options["res_scale"],
        options["img_range"],
    )
    state = load_file(path) if suffix == ".safetensors" else torch.load(path)["params"]
    network.load_state_dict(state)
    assert_same_images(student, network)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_of_basicsr_are_converted(tmp_path, scale):
    torch.manual_seed(0)
    network = BasicSREDSR(scale, 3, 8, 0.1)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "a.pth")
    reading = ["--res-scale", "0.1", "--value-range", "255", "--mean-shift"]
    arguments = ["convert", tmp_path / "a.pth", *reading, "--output", tmp_path / "b.safetensors"]
    main([str(argument) for argument in arguments])
    assert_same_images(load_student(tmp_path / "b.safetensors"), network)


def test_edsr_pytorch_reads_what_is_written_for_it(tmp_path):
    student = make_student(4)
    network = PlainEDSR(4, 2, 8, 0.5)
    network.load_state_dict(torch.load(export(tmp_path, student, "a.pth")))
    assert_same_images(student, network, white=255.0)


def test_no_mean_shift_is_said_to_basicsr(tmp_path, capsys):
    student = make_student()
    student.sub_mean = student.add_mean = torch.nn.Identity()
    export(tmp_path, student, "a.pth", "--naming", "basicsr")
    assert '"rgb_mean": [0.0, 0.0, 0.0]' in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "value_range"), [(2, 255.0), (3, 1.0), (4, 255.0)])
def test_program_of_any_size_without_operators_of_ours(tmp_path, scale, value_range):
    student = make_student(scale, value_range=value_range)
    program = torch.export.load(export(tmp_path, student, "a.pt2"))
    assert all("clsd_fast" not in str(node.target) for node in program.graph.nodes)
    assert_same_images(student, program.module(), white=value_range)


@pytest.mark.parametrize(
    ("scale", "value_range"),
    [(2, 255.0), *(pytest.param(*c, marks=pytest.mark.thorough) for c in [(3, 1.0), (4, 255.0)])],
)
def test_onnx_of_any_size(tmp_path, scale, value_range):
    student = make_student(scale, value_range=value_range)
    path = export(tmp_path, student, "a.onnx")
    stated = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert (stated["scale"], stated["value_range"]) == (scale, value_range)
    session = onnxruntime.InferenceSession(path)
    assert_same_images(
        student,
        lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0]),
        white=value_range,
    )


def test_a_program_of_other_images_is_not_written(tmp_path, capsys, monkeypatch):
    other, export = make_student(res_scale=1.0), torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda _, *args, **kw: export(other, *args, **kw))
    save_student(make_student(), tmp_path / "a.safetensors")
    target = tmp_path / "b.pt2"
    line = refused(capsys, tmp_path, "export", tmp_path / "a.safetensors", "--output", target)
    assert "expected a program within 0.0001 of the student" in line


@pytest.mark.parametrize(
    ("command", "name", "options", "words"),
    [
        ("export", "a.txt", (), "expected .safetensors, .pth, .pt2, .onnx, got"),
        ("export", "a.onnx", ("--naming", "basicsr"), "for names of basicsr, got"),
        ("export", "a.pth", ("--naming", "bazel"), "invalid choice: 'bazel'"),
        ("export", "student.safetensors", (), "which exists (--overwrite replaces it)"),
        ("export", "none/a.pth", (), "expected an existing folder for"),
        ("convert", "student.safetensors", (), "which exists (--overwrite replaces it)"),
        ("convert", "a.pth", (), "expected a file .safetensors, got"),
    ],
)
def test_refusals(tmp_path, student_file, capsys, command, name, options, words):
    target = tmp_path / name
    line = refused(capsys, tmp_path, command, student_file, "--output", target, *options)
    assert words in line


def test_onnx_without_its_packages(tmp_path, student_file, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ("onnx", "no_such_onnx"))
    target = tmp_path / "a.onnx"
    line = refused(capsys, tmp_path, "export", student_file, "--output", target)
    assert "expected no_such_onnx (pip install 'clsd-fast[onnx]'), got none" in line


def test_files_are_replaced_where_asked(tmp_path, student_file):
    target = tmp_path / "a.safetensors"
    for overwrite in ([], ["--overwrite"]):
        main(["convert", str(student_file), "--output", str(target), *overwrite])
    weights, expected = load_file(target), load_file(student_file)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
