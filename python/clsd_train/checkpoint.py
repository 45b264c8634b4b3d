"""Weights on disk: the student alone as safetensors, a run's full state beside it."""

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import clsd_fast
from clsd_fast import EDSR

from .errors import UserError

ARCHITECTURE = ("scale", "num_blocks", "channels", "res_scale", "value_range")
# Where training codes keep the weights, the best candidate first.
CONTAINERS = ("params_ema", "params", "state_dict", "model")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a scratch file beside path, then put it in path's place."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        scratch_path = Path(scratch) / path.name
        write(scratch_path)
        os.replace(scratch_path, path)


def save_student(student: EDSR, path: Path) -> None:
    """Write the student's weights, with its architecture in the metadata."""
    metadata = {name: json.dumps(getattr(student, name)) for name in ARCHITECTURE}
    metadata["clsd_fast"] = clsd_fast.__version__
    weights = {name: value.contiguous() for name, value in student.state_dict().items()}
    # Not save_file, which makes the file readable for its owner alone.
    content = save(weights, metadata)
    write_atomically(path, lambda scratch: scratch.write_bytes(content))


def load_student(path: Path) -> EDSR:
    """The student of a file: ours (.safetensors), or EDSR-PyTorch's naming (.pt, .pth).

    Weights in a container (params_ema, params, state_dict, model) or under ``module.`` are
    found. A ``.pt`` file says nothing of ``res_scale``: 1.0, as in EDSR-baseline.

    Raises:
        UserError: if the file is missing, unreadable, or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: expected a file, got {path}: no such file")
    if path.suffix == ".safetensors":
        state, architecture = _read_safetensors(path)
    else:
        state, architecture = _unwrap(read_torch(path), path), {}
    student = EDSR(**{**_infer_architecture(state, path), **architecture})
    load_weights(student, state, path)
    return student.eval()


def read_torch(path: Path) -> Any:
    """A file of ``torch.save``, tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint: expected a file, got {path}: no such file") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"checkpoint: expected a PyTorch file, got {path}: {reason}") from None


def load_weights(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """``load_state_dict`` that names what does not fit in one line.

    Raises:
        UserError: if keys are missing or too many, or shapes differ.
    """
    own = module.state_dict()
    differences = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "of another shape": {
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        },
    }
    if any(differences.values()):
        parts = [f"{_few(keys)} {what}" for what, keys in differences.items() if keys]
        name = type(module).__name__
        raise UserError(f"checkpoint: expected the weights of this {name} in {path}, "
                        f"got {'; '.join(parts)}")  # fmt: skip
    module.load_state_dict(state)


def _few(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    more = f", ... {len(ordered)} in all" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint: expected safetensors, got {path}: {error}") from None
    known = {name: json.loads(metadata[name]) for name in ARCHITECTURE if name in metadata}
    return state, known


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"checkpoint: expected a state_dict, got another object in {path}")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _infer_architecture(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes of an EDSR in EDSR-PyTorch's naming, from its tensors."""
    needed = ("head.0.weight", "tail.0.0.weight", "sub_mean.bias")
    absent = [key for key in needed if key not in state]
    if absent:
        raise UserError(
            f"checkpoint: expected an EDSR in EDSR-PyTorch's naming in {path}, "
            f"got none of {_few(absent)} among {_few(state)}"
        )
    channels = state["head.0.weight"].shape[0]
    shuffled = state["tail.0.0.weight"].shape[0] // channels
    scale = 3 if shuffled == 9 else (4 if "tail.0.2.weight" in state else 2)
    num_blocks = sum(key.startswith("body.") and key.endswith(".body.0.weight") for key in state)
    # The mean shift is -0.4488 at value range 1 and -114.4 at 255.
    value_range = 255.0 if state["sub_mean.bias"].abs().max() > 1 else 1.0
    return {
        "scale": scale,
        "num_blocks": max(num_blocks, 1),
        "channels": channels,
        "value_range": value_range,
    }
