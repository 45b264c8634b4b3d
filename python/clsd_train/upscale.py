"""A trained student on whole images, and on files of them."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clsd_fast import EDSR

from .arguments import TILE
from .errors import Notice, UserError
from .files import write_atomically
from .images import Picture, bicubic_upscale, images_to_tensor, read_picture, to_rgb
from .listing import ImageFile, list_images


def receptive_radius(student: EDSR) -> int:
    """LR pixels that an output pixel depends on, to each side."""
    # Head, two per block, end of the body, one or two stages of the upsampler, last convolution.
    return 2 * student.num_blocks + 5


@torch.inference_mode()
def upscale(
    student: EDSR, image: np.ndarray, tile: int = TILE, ensemble: bool = False
) -> np.ndarray:
    """uint8 RGB [h, w, 3] to uint8 [scale h, scale w, 3].

    With ``ensemble``, the mean of the student's images of the eight turned and mirrored ones
    (the self-ensemble of EDSR's paper).

    Larger images go in tiles with a border of the receptive field, which bounds the memory and
    changes nothing: at a tile's seam the network sees what it sees in the whole image.
    """
    height, width = image.shape[:2]
    scale, border = student.scale, receptive_radius(student)
    output = np.empty((scale * height, scale * width, 3), np.uint8)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y0, x0 = max(top - border, 0), max(left - border, 0)
            part = image[y0 : top + tile + border, x0 : left + tile + border]
            sr = _forward(student, part, ensemble)
            rows, columns = min(tile, height - top), min(tile, width - left)
            y, x = scale * (top - y0), scale * (left - x0)
            output[scale * top : scale * (top + rows), scale * left : scale * (left + columns)] = (
                sr[y : y + scale * rows, x : x + scale * columns]
            )
    return output


def _forward(student: EDSR, image: np.ndarray, ensemble: bool) -> np.ndarray:
    parameter = next(student.parameters())
    lr = images_to_tensor(image[None], parameter.device) * (student.value_range / 255)
    sr = (_self_ensemble(student, lr) if ensemble else student(lr))[0]
    sr = sr * (255 / student.value_range)
    return sr.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _self_ensemble(student: EDSR, lr: Tensor) -> Tensor:
    images = []
    for turns in range(4):
        turned = torch.rot90(lr, turns, (-2, -1))
        for sr in (student(turned), student(turned.flip(-1)).flip(-1)):
            images.append(torch.rot90(sr, -turns, (-2, -1)))
    return torch.stack(images).mean(0)


def upscale_picture(
    student: EDSR, picture: Picture, tile: int = TILE, ensemble: bool = False
) -> Picture:
    """A picture ``scale`` times the size, of the same channels and profile.

    Grey goes through the student as RGB, and back by luma. Alpha does not: MATLAB's bicubic keeps
    what is opaque opaque, and colours are upscaled as if all were.
    """
    pixels, channels = picture.pixels, picture.pixels.shape[2]
    colours = upscale(student, to_rgb(pixels), tile, ensemble)
    if channels < 3:
        colours = np.asarray(Image.fromarray(colours).convert("L"))[..., None]
    if channels in (2, 4):
        alpha = bicubic_upscale(pixels[..., -1:], student.scale)
        colours = np.concatenate((colours, alpha), axis=2)
    return Picture(colours, picture.icc_profile)


class Task(NamedTuple):
    """An image file and the PNG file to be made of it."""

    source: Path
    target: Path


def plan_upscaling(
    inputs: Sequence[Path], output: Path, scale: int, overwrite: bool
) -> tuple[list[Task], Counter[str]]:
    """What is to be read and written: NAME_x<scale>.png, at the path below the given folder.

    Every input is read once here, so that nothing is written if one of them is bad. Also returns
    how many entries of the folders were left out for which reason.

    Raises:
        UserError: for no, missing or bad inputs, and targets that exist, meet or are inputs.
    """
    if not inputs:
        raise UserError("upscale: expected image files or folders, got none")
    files: list[ImageFile] = []
    left_out: Counter[str] = Counter()
    for item in inputs:
        if not item.exists():
            raise UserError(f"upscale: expected an image file or a folder, got {item}: not there")
        if not item.is_dir():
            files.append(ImageFile(item.stem, item))
            continue
        listing = list_images(item, {output: "the output"})
        files += listing.files
        left_out += listing.left_out
    tasks = [Task(file.path, output / f"{file.name}_x{scale}.png") for file in files]
    _check_targets(tasks, overwrite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # said when the picture is used
        for task in tasks:
            read_picture(task.source)
    return tasks, left_out


def _check_targets(tasks: Sequence[Task], overwrite: bool) -> None:
    counts = Counter(task.target for task in tasks)
    twice = next((target for target, count in counts.items() if count > 1), None)
    if twice:
        named = ", ".join(str(task.source) for task in tasks if task.target == twice)
        raise UserError(f"upscale: expected one input for {twice}, got {named}")
    sources = {os.path.realpath(task.source) for task in tasks}
    for _, target in tasks:
        nearest = next(path for path in target.parents if path.exists())
        if not nearest.is_dir():
            raise UserError(f"upscale: expected a folder as output, got {nearest}: a file")
        if os.path.realpath(target) in sources:
            raise UserError(f"upscale: expected outputs that are no inputs, got {target}")
        if target.is_dir():
            raise UserError(f"upscale: expected a new file, got {target}, which is a folder")
        if target.exists() and not overwrite:
            raise UserError(
                f"upscale: expected a new file, got {target}, which exists "
                "(--overwrite replaces it)"
            )


def upscale_files(
    student: EDSR, tasks: Sequence[Task], tile: int = TILE, ensemble: bool = False
) -> Iterator[Path]:
    """Do the tasks one after the other; yields each file when it is complete."""
    for source, target in tasks:
        pixels, icc_profile = upscale_picture(student, read_picture(source), tile, ensemble)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, partial(image.save, icc_profile=icc_profile))
        yield target
