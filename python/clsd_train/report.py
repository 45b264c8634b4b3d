"""``clsd report``: a run or a study as one HTML page."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clsd_fast.env import report

from .cell import Record
from .checkpoint import load_student
from .compare import STUDY, record_path
from .config import Config
from .data import decode_pairs
from .errors import Notice, UserError
from .figures import choose_crops, draw_cost, draw_curves, draw_quality, first_seeds, most_detailed
from .files import write_atomically
from .history import read_history
from .images import bicubic_upscale
from .metrics import least_size, quality
from .page import Page
from .pairing import find_pairs
from .run_folder import CONFIG, HISTORY, STUDENT, saved_config
from .study import Crop, load_study, make_cells
from .tables import cells_of_table, machines, make_rows
from .upscale import upscale

# Of a run's validation images, so many are shown, each at most so many pixels a side.
IMAGES, SIZE = 4, 320
SHOWN = ("bicubic", "SR", "HR")


def write_report(folder: Path, target: Path) -> None:
    """Write the page of the run or study in a folder.

    Images that are no longer where they were are left out, with a warning that is also on the page.

    Raises:
        UserError: if there is neither run nor study in the folder, or nothing has finished.
    """
    if (folder / STUDY).is_file():
        page = _study_page(folder)
    elif (folder / CONFIG).is_file() and (folder / HISTORY).is_file():
        page = _run_page(folder)
    else:
        raise UserError(f"report: expected the folder of a run or of a study, got {folder}")
    text = page.text()
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))


def _run_page(folder: Path) -> Page:
    config = saved_config(folder)
    entries = read_history(folder / HISTORY)
    steps = [entry for entry in entries if entry["kind"] == "train"]
    if config is None or not steps or not (folder / STUDENT).is_file():
        raise UserError(f"report: expected a run that has saved its student in {folder}, got none")
    page = Page(f"{config.method} x{config.scale}: {folder.absolute().name}")
    scores = [entry for entry in entries if entry["kind"] == "val"]
    page.table([["", "value"], *_facts(config, steps, scores)])
    page.heading("Curves")
    page.plot(_curves(steps, scores), "losses and validation")
    page.heading("Pictures")
    _add_pictures(page, lambda: _run_pictures(config, folder))
    page.heading("Configuration")
    page.code(config.to_yaml())
    page.heading("Versions")
    page.table([["made with", ""], *([key, value] for key, value in report().items())])
    return page


def _facts(
    config: Config, steps: list[dict[str, Any]], scores: list[dict[str, Any]]
) -> Iterator[list[str]]:
    last = steps[-1]
    yield ["iterations", f"{last['iteration']:,} of {config.train.iterations:,}"]
    median = float(np.median([entry["step_seconds"] for entry in steps]))
    yield ["ms a step, median", f"{1000 * median:.1f}"]
    for name in _losses(steps):
        yield [f"last {name} loss", f"{last[name]:.5f}"]
    if scores:
        best = max(scores, key=lambda entry: entry["psnr"])
        for label, entry in (("last", scores[-1]), ("best", best)):
            place = f"{label} validation, iteration {entry['iteration']:,}"
            yield [place, f"{entry['psnr']:.3f} dB, SSIM {entry['ssim']:.4f}"]


def _losses(steps: list[dict[str, Any]]) -> list[str]:
    """Names of the losses of a run."""
    others = ("kind", "iteration", "learning_rate", "loss_scale", "step_seconds")
    return [k for k, v in steps[-1].items() if k not in others and isinstance(v, float)]


def _curves(steps: list[dict[str, Any]], scores: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in _losses(steps):
        points = [(entry["iteration"], entry[name]) for entry in steps if name in entry]
        left.plot(*zip(*points, strict=True), label=name)
    left.set(xlabel="iteration", ylabel="loss", yscale="log")
    left.legend(fontsize=8)
    right.plot([e["iteration"] for e in scores], [e["psnr"] for e in scores], marker=".")
    right.set(xlabel="iteration", ylabel="validation, Y-PSNR in dB")
    return figure


def _run_pictures(config: Config, folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    data, scale = config.data, config.scale
    if not data.val:
        raise UserError("the run validates on no images")
    student = load_student(folder / STUDENT)
    for pair in decode_pairs(find_pairs(data.val, data.val_lr, scale).files[:IMAGES], scale):
        if min(pair.hr.shape[:2]) < least_size(scale):
            continue
        images = bicubic_upscale(pair.lr, scale), upscale(student, pair.lr), pair.hr
        yield (
            _caption(pair.name, dict(zip(SHOWN, images, strict=True)), scale),
            {
                label: _cut(image, most_detailed("", pair, SIZE))
                for label, image in zip(SHOWN, images, strict=True)
            },
        )


def _study_page(folder: Path) -> Page:
    study = load_study(str(folder / STUDY))
    cells = make_cells(study, folder)
    records = {
        cell.name: Record.read(record_path(cell)) for cell in cells if record_path(cell).exists()
    }
    if not records:
        raise UserError(f"report: expected finished cells in {folder}, got none")
    cells = [cell for cell in cells if cell.name in records]
    rows = make_rows(study, cells, records)
    page = Page(study.title)
    if study.about:
        page.paragraph(study.about)
    page.table(cells_of_table(study, rows, records))
    page.heading("Curves")
    figures = {
        "validation": draw_curves(study, cells),
        "quality": draw_quality(study, rows),
        "cost": draw_cost(study, rows),
    }
    for title, figure in figures.items():
        if figure:
            page.plot(figure, title)

    def pictures() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for label, members in first_seeds(study, cells).items():
            scale = members[0].config.scale
            for crop, pair in choose_crops(study, scale, SIZE):
                images = {"bicubic": bicubic_upscale(pair.lr, scale)}
                for cell in members:
                    student = load_student(cell.config.output / STUDENT)
                    images[cell.variant] = upscale(student, pair.lr)
                images["HR"] = pair.hr
                name = ", ".join(filter(None, [f"{crop.set}: {crop.image}", label]))
                yield (
                    _caption(name, images, scale),
                    {key: _cut(image, crop) for key, image in images.items()},
                )

    if study.sets:
        page.heading("Pictures")
        _add_pictures(page, pictures)
    page.heading("Configuration")
    page.code((folder / STUDY).read_text(encoding="utf-8"))
    page.heading("Versions")
    for line in machines(records):
        page.paragraph(line)
    return page


def _add_pictures(page: Page, pictures: Any) -> None:
    try:
        for caption, layers in pictures():
            page.slider(caption, layers)
    except UserError as error:
        warnings.warn(f"report: no pictures: {error}", Notice, stacklevel=2)
        page.paragraph(f"No pictures: {error}")


def _caption(name: str, images: dict[str, np.ndarray], scale: int) -> str:
    """The name, and the PSNR of each whole image against HR."""
    hr = images["HR"]
    texts = [
        f"{label} {quality(image, hr, scale).psnr:.2f} dB"
        for label, image in images.items()
        if label != "HR"
    ]
    return f"{name}: {', '.join(texts)}"


def _cut(image: np.ndarray, crop: Crop) -> np.ndarray:
    rows, columns = (slice(start, start + crop.size) for start in (crop.top, crop.left))
    return np.ascontiguousarray(image[rows, columns])
