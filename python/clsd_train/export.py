"""A student for other programs: weights under the names of others, torch.export and ONNX."""

import io
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from clsd_fast import EDSR, use_backend

from .architecture import Reading
from .arguments import NAMINGS
from .checkpoint import save_student
from .errors import UserError
from .files import check_new, write_atomically
from .naming import to_basicsr

WEIGHTS, PROGRAMS = (".safetensors", ".pth"), (".pt2", ".onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Images that a program is compared with its student on, and by how much of white it may differ.
SIZES, TOLERANCE = ((2, 16, 24), (1, 31, 17), (1, 48, 48)), 1e-4
# Of the program's argument; torch.export finds the names of those that may change.
DYNAMIC = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)


def check_export(path: Path, naming: str, overwrite: bool) -> None:
    """Refuse what :func:`export` could not write, before anything is loaded.

    Raises:
        UserError: for another suffix, a naming of what has no names, a file that is not to be
            replaced, and ONNX without its packages.
    """
    suffix = path.suffix.lower()
    if suffix not in WEIGHTS + PROGRAMS:
        raise UserError(f"export: expected {', '.join(WEIGHTS + PROGRAMS)}, got {path}")
    if suffix in PROGRAMS and naming != NAMINGS[0]:
        raise UserError(
            f"export: expected {' or '.join(WEIGHTS)} for names of {naming}, got {path}"
        )
    check_new(path, "export", overwrite)
    missing = [name for name in ONNX_PACKAGES if not find_spec(name)]
    if suffix == ".onnx" and missing:
        packages = ", ".join(missing)
        raise UserError(f"export: expected {packages} (pip install 'clsd-fast[onnx]'), got none")


def export(student: EDSR, path: Path, naming: str = NAMINGS[0]) -> None:
    """Write the student in the format that the suffix says.

    ============ ======================================================================
    .safetensors weights by EDSR-PyTorch's names, with the architecture, or by BasicSR's
    .pth         the same for ``torch.load``, BasicSR's in its ``params``
    .pt2         a program of ``torch.export``, in PyTorch's own operators
    .onnx        an ONNX model
    ============ ======================================================================

    Programs take RGB images ``lr`` [N, 3, h, w] in 0..value_range, float32 and of any N, h and w,
    to ``sr`` [N, 3, scale h, scale w]. One is only written if its images of three sizes are the
    student's to 1e-4 of white.

    Raises:
        UserError: if the file cannot be written, or the program makes other images.
    """
    if path.suffix.lower() in PROGRAMS:
        write = _write_onnx if path.suffix.lower() == ".onnx" else _write_program
        write_atomically(path, lambda scratch: write(student.eval(), scratch))
    elif path.suffix.lower() == ".safetensors" and naming == NAMINGS[0]:
        save_student(student, path)
    else:
        content = _pack(student, path, naming)
        write_atomically(path, lambda scratch: scratch.write_bytes(content))


def basicsr_options(student: EDSR) -> str:
    """What a BasicSR configuration has to say of the student, as its weights do not."""
    reading = Reading.of(student)
    options: dict[str, Any] = {
        "type": "EDSR",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": student.channels,
        "num_block": student.num_blocks,
        "upscale": student.scale,
        "res_scale": reading.res_scale,
        "img_range": reading.value_range,
    }
    if not reading.mean_shift:
        options["rgb_mean"] = [0.0, 0.0, 0.0]
    return f"network_g: {json.dumps(options)}"


def _pack(student: EDSR, path: Path, naming: str) -> bytes:
    state = student.state_dict() if naming == NAMINGS[0] else to_basicsr(student)
    weights = {key: value.contiguous() for key, value in state.items()}
    if path.suffix.lower() == ".safetensors":
        return save(weights)
    buffer = io.BytesIO()
    torch.save(weights if naming == NAMINGS[0] else {"params": weights}, buffer)
    return buffer.getvalue()


def _write_program(student: EDSR, path: Path) -> None:
    with use_backend("reference"):  # whose programs are of PyTorch's own operators
        program = torch.export.export(student, _example(student), dynamic_shapes=DYNAMIC)
    torch.export.save(program, path)
    _compare(torch.export.load(path).module(), student, path)


def _write_onnx(student: EDSR, path: Path) -> None:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's of itself
        program = torch.onnx.export(
            student,
            _example(student),
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=DYNAMIC,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # which it is where a file is named
    reading = {"scale": student.scale, **Reading.of(student)._asdict()}
    program.model.metadata_props.update({k: json.dumps(v) for k, v in reading.items()})
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    _compare(lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0]), student, path)


def _example(student: EDSR) -> tuple[Tensor]:
    return (_noise(SIZES[0], student),)


def _noise(size: tuple[int, int, int], student: EDSR) -> Tensor:
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    return student.value_range * torch.rand(batch, 3, height, width, generator=generator)


@torch.no_grad()
def _compare(program: Callable[[Tensor], Tensor], student: EDSR, path: Path) -> None:
    for size in SIZES:
        lr = _noise(size, student)
        difference = (program(lr) - student(lr)).abs().max().item() / student.value_range
        if not difference <= TOLERANCE:
            raise UserError(
                f"export: expected a program within {TOLERANCE:g} of the student in {path.name}, "
                f"got {difference:.1e} on images of {size[1]}x{size[2]}; nothing is written"
            )
