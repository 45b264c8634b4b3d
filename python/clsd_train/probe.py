"""How the weights of a file that does not say so are read: what its images speak for."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clsd_fast import EDSR

from .architecture import Reading, Sizes, assumed_reading, make_student
from .errors import Notice, UserError

# What published EDSRs have.
RES_SCALES, VALUE_RANGES, MEAN_SHIFTS = (1.0, 0.1), (255.0, 1.0), (True, False)
# In dB of PSNR to bicubic. Five students of 16 blocks x 24 channels, trained in different ways for
# 500 steps, came to 34 to 38 read as they were trained; four of them were 4 to 28 below that in
# EDSR-baseline's way. Seven students that were not trained came to at most 15 in any way.
LEAST, CLEARLY = 20.0, 3.0
SIZE = 16


def choose_reading(
    sizes: Sizes, state: dict[str, Tensor], stated: dict[str, Any], path: Path
) -> Reading:
    """What is stated, and EDSR-baseline's for the rest, with a warning.

    Raises:
        UserError: if another way makes images that are clearly nearer to bicubic's.
    """
    assumed = assumed_reading(state)._replace(**stated)
    open_fields = [name for name in Reading._fields if name not in stated]
    if not open_fields:
        return assumed
    choices = (
        values if name in open_fields else (getattr(assumed, name),)
        for name, values in zip(
            Reading._fields, (RES_SCALES, VALUE_RANGES, MEAN_SHIFTS), strict=True
        )
    )
    scores = {assumed: _likeness(make_student(sizes, assumed, state, path))}
    for values in itertools.product(*choices):
        reading = Reading(*values)
        if reading not in scores:
            scores[reading] = _likeness(make_student(sizes, reading, state, path))
    nearest = max(scores, key=lambda reading: scores[reading])
    if scores[nearest] >= max(LEAST, scores[assumed] + CLEARLY):
        raise UserError(
            f"checkpoint: expected {path} to say how its weights are read, got nothing: with "
            f"{_options(nearest, open_fields)} its images are {scores[nearest]:.1f} dB from "
            f"bicubic, with {_options(assumed, open_fields)} {scores[assumed]:.1f} dB; give one"
        )
    warnings.warn(
        f"{path} does not say how its weights are read: "
        f"{_options(assumed, open_fields)} is assumed",
        Notice,
        stacklevel=2,
    )
    return assumed


def _options(reading: Reading, names: list[str]) -> str:
    """The options of the command that say so."""
    texts = {
        "res_scale": f"--res-scale {reading.res_scale:g}",
        "value_range": f"--value-range {reading.value_range:g}",
        "mean_shift": "--mean-shift" if reading.mean_shift else "--no-mean-shift",
    }
    return " ".join(texts[name] for name in names)


def _likeness(student: EDSR) -> float:
    """PSNR in dB of the student's image to bicubic's."""
    # They import Pillow, a seventh of a second that most files of weights have no use for.
    from .images import bicubic_upscale
    from .upscale import upscale

    image = _image()
    # The sides see a border of zeros, which is another colour in each reading.
    inner = slice(2 * student.scale, -2 * student.scale)
    ours, bicubic = (
        image[inner, inner].astype(float)
        for image in (upscale(student.eval(), image), bicubic_upscale(image, student.scale))
    )
    return float(10 * np.log10(255**2 / max(np.mean((ours - bicubic) ** 2), 1e-9)))


def _image() -> np.ndarray:
    """Soft colours and a soft disc, uint8 [SIZE, SIZE, 3]: sharp edges are what networks change."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((1, 0.3), (0.4, 1.2), (0.8, -0.7))]
    disc = 1 / (1 + np.exp(40 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 - 0.08)))
    image = 110 + 60 * np.stack(waves, -1) + 60 * disc[..., None]
    return image.clip(0, 255).round().astype(np.uint8)
