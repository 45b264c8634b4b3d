"""Weights on disk: the student alone as safetensors, a run's full state beside it."""

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

import clsd_fast
from clsd_fast import EDSR

from .architecture import Reading, Sizes, check_weights, infer_sizes, make_student
from .containers import unpack
from .errors import UserError, shorten
from .files import write_atomically
from .naming import from_basicsr, is_basicsr
from .official import is_official
from .paths import what_is_at
from .probe import choose_reading

STATE_KEYS = {"iteration": int, "model": dict, "optimizer": dict, "scaler": dict, "meter": dict,
              "average": dict, "rng": dict, "best": dict}  # fmt: skip


def save_student(student: EDSR, path: Path) -> None:
    """Write the student's weights, with its architecture in the metadata."""
    stated = {**Sizes.of(student)._asdict(), **Reading.of(student)._asdict()}
    if stated["mean_shift"]:  # as in every EDSR of this trainer
        del stated["mean_shift"]
    metadata = {name: json.dumps(value) for name, value in stated.items()}
    metadata["clsd_fast"] = clsd_fast.__version__
    weights = {name: value.contiguous() for name, value in student.state_dict().items()}
    # Not save_file, which makes the file readable for its owner alone.
    content = save(weights, metadata)
    write_atomically(path, lambda scratch: scratch.write_bytes(content))


def load_student(
    path: Path,
    res_scale: float | None = None,
    value_range: float | None = None,
    mean_shift: bool | None = None,
) -> EDSR:
    """The student of a file: .safetensors, as ours are, .pt or .pth, or a run's state.

    Weights have EDSR-PyTorch's names or BasicSR's; containers and wrappers around them
    (:func:`unpack`), that of a CLSD among them, are taken off. Of a run's state it is the student
    that the run would save. A file that is neither ours nor an official EDSR-baseline says nothing
    of how its weights are read: that is what the arguments say. What they leave open is
    EDSR-baseline's, with a warning, unless the images that the student then makes speak against it.

    Args:
        path: the file.
        res_scale: factor of each residual branch.
        value_range: value of white.
        mean_shift: whether the mean colour is taken off the image and added again.

    Raises:
        UserError: if the file is missing, unreadable, of another architecture, or most likely
            read in another way than is assumed.
    """
    state, metadata = _read_file(path)
    given = {"res_scale": res_scale, "value_range": value_range, "mean_shift": mean_shift}
    stated = {**_stated(metadata, path), **{k: v for k, v in given.items() if v is not None}}
    return student_of(state, {**stated, **_stated_sizes(metadata, path)}, path)


def student_of(state: dict[str, Tensor], stated: dict[str, Any], path: Path) -> EDSR:
    """The student of tensors by EDSR-PyTorch's or BasicSR's names.

    Args:
        state: the tensors, out of their containers.
        stated: fields of :class:`Reading`, of which those that are missing are chosen as of
            :func:`load_student`, and of :class:`Sizes`, which have to be those of the weights.
        path: what messages name.

    Raises:
        UserError: as of :func:`load_student`.
    """
    if is_basicsr(state):
        state = from_basicsr(state)
    sizes = infer_sizes(state, path, mean_shift=stated.get("mean_shift", True))
    for name, size in sizes._asdict().items():
        if stated.get(name, size) != size:
            raise UserError(
                f"checkpoint: expected {name} {size}, as of the weights, in the metadata of "
                f"{path}, got {stated[name]}"
            )
    stated = {name: value for name, value in stated.items() if name in Reading._fields}
    reading = choose_reading(sizes, state, stated, path)
    return make_student(sizes, reading, state, path).eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name, out of their container.

    Raises:
        UserError: if the file is missing or unreadable.
    """
    return _read_file(path)[0]


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata of .safetensors, or what those of a student with these
    weights would be, where that is known."""
    if not path.is_file():
        raise UserError(f"checkpoint: expected a file, got {path}: {what_is_at(path, 'file')}")
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
        return unpack(state, path), metadata
    data = _read_bytes(path)
    content = _flat(_load_torch(data, path))
    if _is_run(content):
        return unpack(content["average"] or content, path), _metadata_of_run(content)
    return unpack(content, path), _metadata(1.0) if is_official(data) else {}


def _metadata_of_run(state: dict[str, Any]) -> dict[str, str]:
    config = state.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    res_scale = model.get("res_scale") if isinstance(model, dict) else None
    return _metadata(res_scale) if _is_positive(res_scale) else {}


def _metadata(res_scale: float) -> dict[str, str]:
    """How weights of EDSR-PyTorch's colours are read, as files of ours say it."""
    stated = {"res_scale": res_scale, "value_range": 255.0}
    metadata = {name: json.dumps(value) for name, value in stated.items()}
    return {"clsd_fast": clsd_fast.__version__, **metadata}


def read_torch(path: Path) -> Any:
    """A file of ``torch.save``, tensors and plain containers only.

    Raises:
        UserError: if it is missing, damaged or holds Python objects.
    """
    return _load_torch(_read_bytes(path), path)


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"checkpoint: expected a file, got {path}: {what_is_at(path, 'file')}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(_why_not(path, error)) from None


def _load_torch(data: bytes, path: Path) -> Any:
    if _is_compressed(data):
        raise UserError(f"checkpoint: expected a file of torch.save, got {path}: compressed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(_why_not(path, error)) from None


def _is_compressed(data: bytes) -> bool:
    """torch.save compresses nothing: what is compressed may be of any size in memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                return False  # a TorchScript program, which torch.load refuses before it unpacks
            return any(record.compress_type != zipfile.ZIP_STORED for record in records)
    except Exception:  # of the old format, or damaged, as torch.load will say
        return False


def _why_not(path: Path, error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found:
        return (
            f"checkpoint: expected tensors in {path}, got Python objects ({found[1]}); "
            "save model.state_dict() instead of the model"
        )
    if "TorchScript" in text:
        return f"checkpoint: expected tensors in {path}, got a TorchScript program"
    if isinstance(error, (OSError, RuntimeError)) and text:
        reason = text.split("\n")[0]
    else:  # the unpickler's words are about bytes
        reason = "damaged, or of another format"
    return f"checkpoint: expected a PyTorch file, got {path}: {reason}"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write what :func:`read_state` reads."""
    # torch.save itself says of a full disk what no one understands.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda scratch: scratch.write_bytes(buffer.getbuffer()))


def read_state(path: Path) -> dict[str, Any]:
    """The state of a run.

    Raises:
        UserError: if the file is missing or damaged, or holds something else.
    """
    state = _flat(read_torch(path))
    if not _is_run(state):
        raise UserError(f"checkpoint: expected the state of a run in {path}, got something else")
    return state


def _flat(content: Any) -> Any:
    """A run's state as it is written; early ones have the optimizer and its like under ``step``."""
    step = content.get("step") if isinstance(content, dict) else None
    return {**content, **step} if isinstance(step, dict) else content


def _is_run(content: Any) -> bool:
    fits = isinstance(content, dict) and all(
        isinstance(content.get(key), kind) for key, kind in STATE_KEYS.items()
    )
    return (
        fits
        and content["iteration"] >= 0
        and all(isinstance(value, Tensor) for value in content["model"].values())
    )


class Stateful(Protocol):
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def load_part(part: Stateful, state: dict[str, Any], what: str, path: Path) -> None:
    """``load_state_dict`` that says in one line that a state does not fit.

    Raises:
        UserError: if it is of something else than what.
    """
    try:
        part.load_state_dict(state)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise UserError(f"checkpoint: expected the {what} in {path}, got another") from None


def load_weights(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """``load_state_dict`` that names what does not fit in one line.

    Raises:
        UserError: if keys are missing or too many, or shapes differ.
    """
    check_weights(module, state, path)
    module.load_state_dict(state)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except MemoryError:
        raise
    except Exception as error:  # of a damaged header, and of types that this torch has not
        raise UserError(f"checkpoint: expected safetensors, got {path}: {error}") from None


def _stated(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """How the metadata of a file of ours says that its weights are read."""
    if "clsd_fast" not in metadata:
        return {}
    stated = {"mean_shift": True, **_parse(metadata, Reading._fields, path)}
    for name, value in stated.items():
        valid = isinstance(value, bool) if name == "mean_shift" else _is_positive(value)
        if not valid:
            raise _bad_metadata(path, name, value)
    return stated


def _stated_sizes(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    return _parse(metadata, Sizes._fields, path) if "clsd_fast" in metadata else {}


def _parse(metadata: dict[str, str], names: tuple[str, ...], path: Path) -> dict[str, Any]:
    values = {}
    for name in set(names) & metadata.keys():
        try:
            values[name] = json.loads(metadata[name])
        except (ValueError, RecursionError):
            raise _bad_metadata(path, name, metadata[name]) from None
    return values


def _is_positive(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 < float(value) < float("inf")  # type: ignore[arg-type]


def _bad_metadata(path: Path, name: str, value: object) -> UserError:
    got = f"got {shorten(value)}"
    return UserError(f"checkpoint: expected {name} in the metadata of {path}, {got}")
