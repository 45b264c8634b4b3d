"""Students beside bicubic: each image's scores, their means, and how both are printed and kept."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clsd_fast import EDSR

from .arguments import TILE
from .data import Pair, decode_pairs
from .errors import UserError, one_line
from .files import write_atomically
from .images import bicubic_upscale
from .metrics import Quality, mean_quality, quality
from .pairing import PairFiles, find_pairs
from .paths import expand_inputs
from .upscale import upscale

MEAN, BICUBIC = "mean", "bicubic"
NAMED = re.compile(r"([^/=]+)=(.+)", re.DOTALL)
# Of each image and mean, by bicubic's and the students' names.
Scores = dict[str, dict[str, Quality]]


class ImageSet(NamedTuple):
    """Folders whose images have one mean; a name stands in front of those of its images."""

    name: str
    hr: tuple[Path, ...]
    lr: tuple[Path, ...]


class Measure(NamedTuple):
    """How students are scored.

    Attributes:
        rgb: on RGB instead of Y.
        ensemble: of the mean of eight turned and mirrored images.
        tile: LR pixels a side that are upscaled at a time.
    """

    rgb: bool = False
    ensemble: bool = False
    tile: int = TILE


def image_sets(words: Sequence[str], lr: tuple[Path, ...]) -> list[ImageSet]:
    """The sets NAME=FOLDER, or all folders as one without a name.

    Raises:
        UserError: for a glob that nothing matches, names that meet or are not everywhere, and LR
            folders that are not as many as the sets.
    """
    named = [None if os.path.lexists(word) else NAMED.fullmatch(word) for word in words]
    if not any(named):
        return [ImageSet("", _expand(words), lr)]
    sets: dict[str, ImageSet] = {}
    lr_of: list[tuple[Path, ...]] = [(folder,) for folder in lr] or [()] * len(words)
    if len(lr_of) != len(words):
        got = f"{len(lr)} for {len(words)}"
        raise UserError(f"eval: expected a folder of LR images for each set, got {got}")
    for match, word, lr_folders in zip(named, words, lr_of, strict=True):
        if match is None or match[1] in sets:
            raise UserError(f"eval: expected sets NAME=FOLDER of distinct names, got {word}")
        sets[match[1]] = ImageSet(match[1], _expand([match[2]]), lr_folders)
    return list(sets.values())


def _expand(texts: Sequence[str]) -> tuple[Path, ...]:
    try:
        return expand_inputs(texts)
    except UserError as error:
        raise UserError(f"eval: {error}") from None


def name_students(paths: Sequence[Path], load: Callable[[Path], EDSR]) -> dict[str, EDSR]:
    """The students by the names of their files, by their paths where those meet; one as such.

    Raises:
        UserError: for a file that is no student's, or is there twice.
    """
    if len(paths) == 1:
        return {"student": load(paths[0])}
    names = [path.stem for path in paths]
    if len({*names, BICUBIC}) <= len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"eval: expected distinct weights, got {', '.join(names)}")
    return {name: load(path) for name, path in zip(names, paths, strict=True)}


def evaluate(
    students: dict[str, EDSR], sets: Sequence[ImageSet], measure: Measure
) -> tuple[Scores, int, Counter[str]]:
    """Scores of all images and each set's mean; how many images those are, and what was left out.

    Raises:
        UserError: for students of several scales, bad images or folders, and names that meet.
    """
    scale = _common_scale(students)
    listings = {images: find_pairs(images.hr, images.lr, scale) for images in sets}
    for images, listing in listings.items():
        _check_names(images, listing.files)
    scores: Scores = {}
    for images, listing in listings.items():
        prefix = f"{images.name}/" if images.name else ""
        rows = {
            prefix + pair.name: _score(students, pair, measure)
            for pair in decode_pairs(listing.files, scale)
        }
        columns = {name: [row[name] for row in rows.values()] for name in (BICUBIC, *students)}
        means = {name: mean_quality(column) for name, column in columns.items()}
        scores |= {**rows, prefix + MEAN: means}
    left_out = sum((listing.left_out for listing in listings.values()), Counter[str]())
    return scores, sum(len(listing.files) for listing in listings.values()), left_out


def _common_scale(students: dict[str, EDSR]) -> int:
    scales = {name: student.scale for name, student in students.items()}
    if len(set(scales.values())) > 1:
        got = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UserError(f"eval: expected students of one scale, got {got}")
    return next(iter(scales.values()))


def _check_names(images: ImageSet, files: Sequence[PairFiles]) -> None:
    seen: dict[str, PairFiles] = {}
    for file in files:
        if file.name == MEAN:
            raise UserError(f"eval: expected images of other names than {MEAN}, got {file.hr}")
        if file.name in seen:
            raise UserError(
                f"eval: expected images of distinct names, got {file.name} twice: "
                f"{seen[file.name].hr} and {file.hr}"
            )
        seen[file.name] = file


def _score(students: dict[str, EDSR], pair: Pair, measure: Measure) -> dict[str, Quality]:
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    images = {BICUBIC: bicubic_upscale(pair.lr, scale)}
    for name, student in students.items():
        images[name] = upscale(student, pair.lr, measure.tile, measure.ensemble)
    try:
        return {name: quality(sr, pair.hr, scale, measure.rgb) for name, sr in images.items()}
    except ValueError as error:
        raise UserError(f"eval: {pair.name}: {error}") from None


def print_scores(scores: Scores, title: str) -> None:
    """A line for each image and mean."""
    names = list(next(iter(scores.values())))
    columns = [f"{name} {unit}" for unit in ("dB", "SSIM") for name in names]
    # No part of a name is left out, nor does one mean markup.
    table = Table(Column("image", overflow="fold"), *(Column(Text(one_line(c))) for c in columns))
    for image, row in scores.items():
        decibels = [f"{row[name].psnr:.2f}" for name in names]
        table.add_row(Text(one_line(image)), *decibels, *(f"{row[n].ssim:.4f}" for n in names))
    table.title = title
    Console().print(table)


def write_json(path: Path, scores: Scores) -> None:
    """By image, then bicubic and student: ``psnr`` and ``ssim``."""
    content = {
        image: {name: score._asdict() for name, score in row.items()}
        for image, row in scores.items()
    }
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_csv(path: Path, scores: Scores) -> None:
    """Lines of image, method, PSNR and SSIM."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "method", *Quality._fields])
    writer.writerows([image, name, *s] for image, row in scores.items() for name, s in row.items())
    content = buffer.getvalue().encode("utf-8", "backslashreplace")
    write_atomically(path, lambda scratch: scratch.write_bytes(content))
