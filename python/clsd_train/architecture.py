"""Which network a state_dict is of, and that network."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clsd_fast import EDSR

from .errors import UserError

MEAN_SHIFT = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")
# What keys of other networks contain that no EDSR of EDSR-PyTorch has.
OTHERS = {
    ".conv_du.": "an RCAN",
    ".residual_group.blocks.": "a SwinIR",
    ".rdb1.": "an RRDBNet (ESRGAN)",
    ".RDB1.": "an RRDBNet (ESRGAN)",
    "RRDB_trunk.": "an RRDBNet (ESRGAN)",
    "SFENet1.": "an RDN",
    "pre_process.": "an MDSR",
    "upconv1.": "an MSRResNet (which has LeakyReLU and a bilinear skip, an EDSR neither)",
    "conv_first.": "another network of BasicSR's",
}


class Sizes(NamedTuple):
    """What the shapes of its weights say of an EDSR."""

    scale: int
    num_blocks: int
    channels: int

    @classmethod
    def of(cls, student: EDSR) -> "Sizes":
        return cls(student.scale, student.num_blocks, student.channels)


class Reading(NamedTuple):
    """What they do not say: how the weights are used."""

    res_scale: float
    value_range: float
    mean_shift: bool

    @classmethod
    def of(cls, student: EDSR) -> "Reading":
        mean_shift = not isinstance(student.sub_mean, nn.Identity)
        return cls(float(student.res_scale), student.value_range, mean_shift)


def infer_sizes(state: dict[str, Tensor], path: Path, mean_shift: bool) -> Sizes:
    """Sizes of an EDSR in EDSR-PyTorch's naming, from its tensors.

    Raises:
        UserError: if they are another network's.
    """
    expected = f"checkpoint: expected an EDSR by EDSR-PyTorch's or BasicSR's names in {path}, got"
    other = _other(state)
    if other:
        raise UserError(f"{expected} {other}")
    needed = ("head.0.weight", "tail.0.0.weight", *(["sub_mean.bias"] * mean_shift))
    absent = [key for key in needed if key not in state]
    if absent:
        hint = " (--no-mean-shift for one without)" if absent == ["sub_mean.bias"] else ""
        raise UserError(f"{expected} none of {few(absent)} among {few(state)}{hint}")
    channels = _channels(state)
    if not channels:
        shapes = ", ".join(f"{key} of shape {list(state[key].shape)}" for key in needed[:2])
        raise UserError(f"{expected} {shapes}")
    scale = 3 if len(state["tail.0.0.weight"]) == 9 * channels else 2
    scale = 4 if "tail.0.2.weight" in state else scale
    return Sizes(scale, max(len(_branches(state)), 1), channels)


def _other(state: dict[str, Tensor]) -> str | None:
    """What else than an EDSR that :class:`clsd_fast.EDSR` can be, if it is recognised."""
    for part, name in OTHERS.items():
        if any(part in key for key in state):
            return name
    if "tail.0.4.weight" in state:
        return "one of x8 or more (x2, x3 and x4 are read)"
    head = state.get("head.0.weight")
    if head is not None and head.dim() == 4 and head.shape[1] != 3:
        return f"one for images of {head.shape[1]} channel{'s' * (head.shape[1] != 1)} (3 are read)"
    return None


def _channels(state: dict[str, Tensor]) -> int:
    """The channels that head and upsampler agree on, else 0.

    Also 0 where the file is much too small for its blocks: a student is not made by a claim alone.
    """
    head, up = state["head.0.weight"].shape, state["tail.0.0.weight"].shape
    channels = head[0] if len(head) == 4 else 0
    branches = _branches(state)
    agree = (
        head == (channels, 3, 3, 3)
        and up in ((4 * channels, channels, 3, 3), (9 * channels, channels, 3, 3))
        and 2 * sum(weight.numel() for weight in branches) >= len(branches) * 9 * channels**2
    )
    return channels if agree else 0


def _branches(state: dict[str, Tensor]) -> list[Tensor]:
    """The first weight of each residual block."""
    return [v for k, v in state.items() if re.fullmatch(r"body\.\d+\.body\.0\.weight", k)]


def assumed_reading(state: dict[str, Tensor]) -> Reading:
    """EDSR-baseline's, at the value range that a mean shift among the weights is made for."""
    return Reading(1.0, _range_of_mean(state), True)


def _range_of_mean(state: dict[str, Tensor]) -> float:
    # The mean shift is -0.4488 at value range 1 and -114.4 at 255.
    bias = state.get("sub_mean.bias")
    # A bias of another type is refused later; to cast a complex one is a warning of PyTorch's.
    if bias is None or not bias.is_floating_point() or not bias.numel():
        return 255.0
    return 1.0 if bias.float().abs().max() <= 1 else 255.0


def make_student(sizes: Sizes, reading: Reading, state: dict[str, Tensor], path: Path) -> EDSR:
    """The student with these weights.

    Raises:
        UserError: if the weights do not fit.
    """
    student = EDSR(*sizes, reading.res_scale, reading.value_range)
    if reading.mean_shift:
        # A mean shift that was made for another range is the same colour in this one.
        factor = reading.value_range / _range_of_mean(state)
        state = {k: v * factor if k in MEAN_SHIFT[1::2] else v for k, v in state.items()}
    else:
        student.sub_mean = student.add_mean = nn.Identity()  # type: ignore[assignment]
        state = {k: v for k, v in state.items() if k not in MEAN_SHIFT}
    check_weights(student, state, path)
    student.load_state_dict(state)
    return student


def check_weights(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """What ``load_state_dict`` and the first image would complain of, in one line.

    Raises:
        UserError: if keys are missing or too many, shapes or types differ, or a weight is not
            finite.
    """
    own = module.state_dict()
    common = own.keys() & state.keys()
    differences = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "of another shape": {key for key in common if own[key].shape != state[key].shape},
        "of another type": {key for key in common if not _like(own[key], state[key])},
    }
    if not any(differences.values()):
        differences = {"not finite": {k for k in common if not state[k].float().isfinite().all()}}
    if any(differences.values()):
        parts = [f"{few(keys)} {what}" for what, keys in differences.items() if keys]
        name = type(module).__name__
        raise UserError(f"checkpoint: expected the weights of this {name} in {path}, "
                        f"got {'; '.join(parts)}")  # fmt: skip


def _like(own: Tensor, value: Tensor) -> bool:
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    return plain and own.is_floating_point() == value.is_floating_point()


def few(keys: Iterable[str]) -> str:
    """The first three of some keys."""
    ordered = sorted(keys)
    more = f", ... {len(ordered)} in all" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
