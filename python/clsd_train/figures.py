"""Plots and pictures of a study."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .cell import Record
from .checkpoint import load_student
from .data import Pair, decode_pairs
from .history import read_history
from .images import bicubic_upscale
from .metrics import least_size, quality
from .pairing import find_pairs
from .run_folder import HISTORY, STUDENT
from .study import Cell, Crop, Study, sets_of
from .tables import Row
from .upscale import upscale

# Pixels a side of a crop that the study does not name.
CROP_SIZE = 64
DPI = 110


def draw_all(
    study: Study,
    cells: Sequence[Cell],
    records: Mapping[str, Record],
    rows: Sequence[Row],
    output: Path,
) -> list[str]:
    """Draw what the cells have; the names of the files, in the study's folder."""
    drawn = {
        "curves.png": draw_curves(study, cells),
        "quality.png": draw_quality(study, rows),
        "cost.png": draw_cost(study, rows),
        "pictures.png": _draw_pictures(study, cells),
    }
    for name, figure in drawn.items():
        if figure:
            figure.savefig(output / name, dpi=DPI)
    return [name for name, figure in drawn.items() if figure]


def draw_curves(study: Study, cells: Sequence[Cell]) -> Figure | None:
    """Validation against iterations, the mean over seeds, a panel for each group of options."""
    panels: dict[str, dict[str, list[dict[int, float]]]] = {}
    for cell in cells:
        entries = read_history(cell.config.output / HISTORY)
        curve = {e["iteration"]: e["psnr"] for e in entries if e["kind"] == "val"}
        if curve:
            panel = panels.setdefault(cell.group.label, {})
            panel.setdefault(cell.variant, []).append(curve)
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (label, panel) in zip(axes, panels.items(), strict=True):
        for variant, curves in panel.items():
            shared = sorted(set.intersection(*map(set, curves)))
            means = [statistics.fmean(curve[i] for curve in curves) for i in shared]
            axis.plot(shared, means, label=variant, color=_colour(study, variant), marker=".")
        axis.set(xlabel="iteration", ylabel=f"{next(iter(study.sets))}, Y-PSNR in dB", title=label)
        axis.legend(fontsize=8)
    return figure


def draw_quality(study: Study, rows: Sequence[Row]) -> Figure | None:
    """PSNR against the first option that is a number, if there is one of several values."""
    numeric = [
        option
        for option, values in study.options.items()
        if len(values) > 1 and all(type(value) in (int, float) for value in values)
    ]
    if not numeric:
        return None
    option = numeric[0]
    sets = list(rows[0].psnr)
    figure, axes = _panels(len(sets))
    for axis, name in zip(axes, sets, strict=True):
        lines: dict[tuple[str, str], list[tuple[Any, Row]]] = {}
        for row in rows:
            items = dict(row.group.items)
            if option not in items:
                label = ", ".join(filter(None, [row.variant, row.group.label]))
                axis.axhline(row.psnr[name].mean, color=_colour(study, row.variant),
                             linestyle="--", label=label)  # fmt: skip
                continue
            rest = ", ".join(f"{k}={v}" for k, v in items.items() if k != option)
            lines.setdefault((row.variant, rest), []).append((items[option], row))
        for (variant, rest), points in lines.items():
            values = [row.psnr[name] for _, row in points]
            axis.errorbar(
                [x for x, _ in points],
                [value.mean for value in values],
                [value.spread or 0 for value in values],
                label=", ".join(filter(None, [variant, rest])),
                color=_colour(study, variant),
                marker="o",
                capsize=3,
            )
        axis.set(xlabel=option, ylabel="Y-PSNR in dB", title=name)
        axis.legend(fontsize=8)
    return figure


def draw_cost(study: Study, rows: Sequence[Row]) -> Figure:
    """Milliseconds of a step, bars of one colour for each group of options."""
    figure = Figure(figsize=(8, 0.6 + 0.28 * len(rows)), layout="constrained")
    axis = figure.subplots()
    groups = list(dict.fromkeys(row.group.label for row in rows))
    labels = [", ".join(filter(None, [row.variant, row.group.label])) for row in rows]
    places = range(len(rows))
    axis.barh(
        places,
        [row.milliseconds.mean for row in rows],
        xerr=[row.milliseconds.spread or 0 for row in rows],
        color=[f"C{groups.index(row.group.label) % 10}" for row in rows],
    )
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds a step")
    return figure


def _draw_pictures(study: Study, cells: Sequence[Cell]) -> Figure | None:
    """Crops side by side: HR, bicubic and each variant's student of its first seed."""
    lines = [
        (group, crop, pair, members)
        for group, members in first_seeds(study, cells).items()
        for crop, pair in choose_crops(study, members[0].config.scale)
    ]
    if not lines:
        return None
    columns = 2 + max(len(members) for _, _, _, members in lines)
    figure = Figure(figsize=(1.9 * columns, 2.3 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for row, (group, crop, pair, members) in zip(axes, lines, strict=True):
        scale = members[0].config.scale
        images = {"HR": pair.hr, "bicubic": bicubic_upscale(pair.lr, scale)}
        for cell in members:
            images[cell.variant] = upscale(load_student(cell.config.output / STUDENT), pair.lr)
        for axis in row:
            axis.set_axis_off()
        for axis, (title, image) in zip(row, images.items(), strict=False):
            axis.imshow(image[crop.top : crop.top + crop.size, crop.left : crop.left + crop.size])
            decibels = "" if title == "HR" else f"\n{quality(image, pair.hr, scale).psnr:.2f} dB"
            axis.set_title(f"{title}{decibels}", fontsize=8)
        where = ", ".join(filter(None, [f"{crop.set}: {crop.image}", group]))
        row[0].set_title(f"{where}\nHR", fontsize=8)
    return figure


def first_seeds(study: Study, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The first seed of each variant, by the label of the options of its pictures' row."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.seed == (study.variants[cell.variant].seeds or study.seeds)[0]:
            groups.setdefault(cell.group.label, []).append(cell)
    return groups


def choose_crops(study: Study, scale: int, size: int = CROP_SIZE) -> list[tuple[Crop, Pair]]:
    """What the study names, else the most detailed part of each set's first image."""
    found = []
    for name, folders in sets_of(study, scale).items():
        files = find_pairs(folders.hr, folders.lr, scale).files
        wanted = {crop.image for crop in study.crops if crop.set == name}
        if not study.crops:
            wanted = {file.name for file in files[:1]}
        for pair in decode_pairs([file for file in files if file.name in wanted], scale):
            if min(pair.hr.shape[:2]) < least_size(scale):
                continue
            crops = [c for c in study.crops if c.set == name and c.image == pair.name]
            found += [(crop, pair) for crop in crops or [most_detailed(name, pair, size)]]
    return found


def most_detailed(name: str, pair: Pair, size: int = CROP_SIZE) -> Crop:
    """Where neighbouring pixels differ most, in an image of a set, at most size pixels a side."""
    grey = pair.hr.astype(float).mean(2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    size = min(size, *detail.shape)
    sums = np.pad(detail, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return Crop(set=name, image=pair.name, top=int(top), left=int(left), size=size)


def _panels(count: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5 * min(count, 4), 3.6 * -(-count // 4)), layout="constrained")
    axes = list(figure.subplots(-(-count // 4), min(count, 4), squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _colour(study: Study, variant: str) -> str:
    return f"C{list(study.variants).index(variant) % 10}"
