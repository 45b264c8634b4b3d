"""``clsd demo``: a small CLSD training on photographs that scikit-image ships."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from clsd_fast import EDSR

from .config import Config, load_config
from .data import Pair
from .errors import UserError
from .images import bicubic_upscale
from .loop import Run, validate
from .metrics import Quality, mean_quality, quality
from .photographs import HELD_OUT, TRAINING, check_photographs, copy_photographs
from .preset import PRESETS
from .upscale import upscale

# Crops for the picture: image, top, left in HR pixels.
CROPS = (("chelsea", 90, 130), ("coffee", 110, 240))
CROP_SIZE = 96


class Result(NamedTuple):
    """A trained student's row of the table."""

    quality: Quality
    parameters: int
    seconds: float


def run_demo(output: Path) -> None:
    """Train a plain and a CLSD student of one size, seed and length; print and draw the results.

    Args:
        output: new or empty folder for the photographs, both runs, ``metrics.json``,
            ``comparison.png`` and ``curve.png``.

    Raises:
        UserError: if scikit-image is missing or the folder holds something.
    """
    check_photographs("demo")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"demo: expected an empty or new folder, got {output}")
    config = _configure(output)
    console = Console()
    console.print(_describe(config), highlight=False)
    copy_photographs(output / "photographs")

    runs = {"plain": Run(_variant(config, "baseline")), "CLSD": Run(_variant(config, "clsd"))}
    pairs = runs["plain"].val_sets[""]
    bicubic = _bicubic_quality(pairs, config.scale)
    results = {}
    for name, run in runs.items():
        console.print(f"training the {name} student")
        results[name] = _train(run)
    _print_table(console, bicubic, results)
    _write_metrics(output / "metrics.json", config, bicubic, results)
    students = {name: run.student for name, run in runs.items()}
    _draw_comparison(output / "comparison.png", pairs, students)
    _draw_curves(output / "curve.png", {name: run.history.entries for name, run in runs.items()})
    console.print(f"wrote metrics.json, comparison.png and curve.png to {output}", highlight=False)


def _configure(output: Path) -> Config:
    photographs = output / "photographs"
    config = load_config(PRESETS["quick"])
    folders = {"train": (photographs / "train",), "val": (photographs / "held-out",)}
    data = config.data.model_copy(update={**folders, "cache": output / "cache"})
    return config.model_copy(update={"data": data, "output": output})


def _variant(config: Config, method: str) -> Config:
    return config.model_copy(update={"method": method, "output": config.output / method})


def _describe(config: Config) -> str:
    model, heads, train = config.model, config.heads, config.train
    return (
        f"x{config.scale}: EDSR of {model.num_blocks} blocks x {model.channels} channels, "
        f"{len(heads.taps)} heads of {heads.blocks} blocks after blocks "
        f"{', '.join(map(str, heads.taps))}; {train.iterations} iterations of "
        f"{train.batch_size} patches of {config.data.patch_size} LR pixels, on "
        f"{len(TRAINING)} photographs, {len(HELD_OUT)} held out.\n"
        "At this size and length the difference between plain and CLSD is noise, not a claim."
    )


def _train(run: Run) -> Result:
    started = time.perf_counter()
    run.train()
    seconds = time.perf_counter() - started
    student = run.student
    parameters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return Result(validate(student, run.val_sets[""]), parameters, seconds)


def _bicubic_quality(pairs: list[Pair], scale: int) -> Quality:
    return mean_quality([quality(bicubic_upscale(p.lr, scale), p.hr, scale) for p in pairs])


def _print_table(console: Console, bicubic: Quality, results: dict[str, Result]) -> None:
    table = Table("", "Y-PSNR dB", "SSIM", "parameters", "seconds")
    table.title = f"held-out photographs: {', '.join(HELD_OUT)}"
    table.add_row("bicubic", f"{bicubic.psnr:.2f}", f"{bicubic.ssim:.4f}")
    for name, (score, parameters, seconds) in results.items():
        scores = f"{score.psnr:.2f}", f"{score.ssim:.4f}"
        table.add_row(f"{name} student", *scores, f"{parameters:,}", f"{seconds:.1f}")
    console.print(table)


def _write_metrics(
    path: Path, config: Config, bicubic: Quality, results: dict[str, Result]
) -> None:
    metrics: dict[str, Any] = {
        "bicubic_psnr": bicubic.psnr,
        "bicubic_ssim": bicubic.ssim,
        "seconds": sum(result.seconds for result in results.values()),
    }
    for name, (score, parameters, seconds) in results.items():
        key = name.lower()
        metrics |= {f"{key}_psnr": score.psnr, f"{key}_ssim": score.ssim}
        metrics |= {f"{key}_parameters": parameters, f"{key}_seconds": seconds}
    metrics["config"] = config.model_dump(mode="json")
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _draw_comparison(path: Path, pairs: list[Pair], students: dict[str, EDSR]) -> None:
    by_name = {pair.name: pair for pair in pairs}
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    axes = figure.subplots(len(CROPS), 3 + len(students), squeeze=False)
    for row, (name, top, left) in zip(axes, CROPS, strict=True):
        pair = by_name[name]
        scale = pair.hr.shape[0] // pair.lr.shape[0]
        columns = {
            "LR": np.asarray(
                Image.fromarray(pair.lr).resize(pair.hr.shape[1::-1], Image.Resampling.NEAREST)
            ),
            "bicubic": bicubic_upscale(pair.lr, scale),
            **{f"SR, {key}": upscale(student, pair.lr) for key, student in students.items()},
            "HR": pair.hr,
        }
        for axis, (title, image) in zip(row, columns.items(), strict=True):
            axis.imshow(image[top : top + CROP_SIZE, left : left + CROP_SIZE])
            axis.set_title(f"{name}: {title}", fontsize=10)
            axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _draw_curves(path: Path, histories: dict[str, list[dict[str, Any]]]) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, psnr_axis = figure.subplots(1, 2)
    for name, entries in histories.items():
        for axis, kind, value in ((loss_axis, "train", "rec"), (psnr_axis, "val", "psnr")):
            points = [(e["iteration"], e[value]) for e in entries if e["kind"] == kind]
            axis.plot(*zip(*points, strict=True), label=name)
    loss_axis.set(xlabel="iteration", ylabel="student's L1 loss", yscale="log")
    psnr_axis.set(xlabel="iteration", ylabel="Y-PSNR on held-out photographs, dB")
    psnr_axis.legend()
    figure.savefig(path, dpi=110)
