"""``clsd demo``: a small CLSD training on photographs that scikit-image ships."""

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from clsd_fast import EDSR

from .config import Config, load_config
from .data import Pair
from .errors import UserError
from .history import step_milliseconds
from .images import bicubic_upscale
from .loop import Run, validate
from .metrics import Quality, mean_quality, quality
from .photographs import HELD_OUT, TRAINING, check_photographs, copy_photographs
from .preset import PRESETS
from .step_cost import StepCost, measure_step
from .upscale import upscale

# Crops for the picture: image, top, left in HR pixels.
CROPS = (("chelsea", 90, 130), ("coffee", 110, 240))
CROP_SIZE = 96


# The names of the trained students; the third is what the plain one would be in CLSD's time.
PLAIN, CLSD, SAME_TIME = "plain", "CLSD", "plain, CLSD's time"
# The presets that are trained, and whose steps are timed beside that.
QUICK, PAPER = "quick", "paper_x2"
# For how long each.
SECONDS = 15.0


class Result(NamedTuple):
    """A trained student's row of the table."""

    quality: Quality
    parameters: int
    iterations: int
    seconds: float


def run_demo(output: Path) -> None:
    """Train a plain and a CLSD student for as many iterations, and a plain one for as much time.

    All are of one size and seed. Prints and draws the results, and what a step takes on our kernels
    and in plain PyTorch.

    Args:
        output: new or empty folder for the photographs, the runs, ``metrics.json``,
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

    runs: dict[str, Run] = {}
    results: dict[str, Result] = {}
    for name, method in ((PLAIN, "baseline"), (CLSD, "clsd"), (SAME_TIME, "baseline")):
        iterations = config.train.iterations
        if name == SAME_TIME:
            plain, clsd = (step_milliseconds(runs[n].history.entries) for n in (PLAIN, CLSD))
            iterations = max(round(iterations * clsd / plain), 1)
        runs[name] = Run(_variant(config, name, method, iterations))
        console.print(f"training: {name}, {iterations} iterations", highlight=False)
        results[name] = _train(runs[name])
    pairs = runs[PLAIN].val_sets[""]
    bicubic = _bicubic_quality(pairs, config.scale)
    _print_table(console, bicubic, results)
    console.print("timing steps")
    times = {name: measure_step(load_config(PRESETS[name]), SECONDS) for name in (QUICK, PAPER)}
    _print_times(console, times)
    _write_metrics(output / "metrics.json", config, bicubic, results, times)
    students = {name: run.student for name, run in runs.items()}
    _draw_comparison(output / "comparison.png", pairs, students)
    _draw_curves(output / "curve.png", {name: run.history.entries for name, run in runs.items()})
    console.print(f"wrote metrics.json, comparison.png and curve.png to {output}", highlight=False)


def _configure(output: Path) -> Config:
    photographs = output / "photographs"
    config = load_config(PRESETS[QUICK])
    folders = {"train": (photographs / "train",), "val": (photographs / "held-out",)}
    data = config.data.model_copy(update={**folders, "cache": output / "cache"})
    return config.model_copy(update={"data": data, "output": output})


def _variant(config: Config, name: str, method: str, iterations: int) -> Config:
    train = config.train.model_copy(update={"iterations": iterations})
    output = config.output / _key(name)
    return config.model_copy(update={"method": method, "train": train, "output": output})


def _key(name: str) -> str:
    """A name as keys and folders have it."""
    return "_".join(re.findall(r"\w+", name.lower().replace("'s", "")))


def _describe(config: Config) -> str:
    model, heads, train = config.model, config.heads, config.train
    paper = load_config(PRESETS[PAPER]).train.iterations
    return (
        f"x{config.scale}: EDSR of {model.num_blocks} blocks x {model.channels} channels, "
        f"{len(heads.taps)} heads of {heads.blocks} blocks after blocks "
        f"{', '.join(map(str, heads.taps))}; {train.iterations} iterations of "
        f"{train.batch_size} patches of {config.data.patch_size} LR pixels, on "
        f"{len(TRAINING)} photographs, {len(HELD_OUT)} held out.\n"
        f"{train.iterations} iterations, of the paper's {paper}, show that all of it trains and "
        "what it costs.\nWhich student is better in the end they cannot show: "
        "a difference here is no claim."
    )


def _train(run: Run) -> Result:
    started = time.perf_counter()
    run.train()
    seconds = time.perf_counter() - started
    student = run.student
    parameters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return Result(validate(student, run.val_sets[""]), parameters, run.iteration, seconds)


def _bicubic_quality(pairs: list[Pair], scale: int) -> Quality:
    return mean_quality([quality(bicubic_upscale(p.lr, scale), p.hr, scale) for p in pairs])


def _print_table(console: Console, bicubic: Quality, results: dict[str, Result]) -> None:
    table = Table("student", "Y-PSNR dB", "SSIM", "parameters", "iterations", "seconds")
    table.title = f"held-out photographs: {', '.join(HELD_OUT)}"
    table.add_row("bicubic", f"{bicubic.psnr:.2f}", f"{bicubic.ssim:.4f}")
    for name, (score, parameters, iterations, seconds) in results.items():
        scores = f"{score.psnr:.2f}", f"{score.ssim:.4f}"
        table.add_row(name, *scores, f"{parameters:,}", str(iterations), f"{seconds:.1f}")
    console.print(table)


def _print_times(console: Console, times: dict[str, StepCost]) -> None:
    table = Table("milliseconds of a CLSD step", "clsd-fast", "PyTorch", "times as fast")
    table.title = f"this machine's CPU, {torch.get_num_threads()} threads"
    for name, (ours, pytorch, _) in times.items():
        config = load_config(PRESETS[name])
        patches = f"batch {config.train.batch_size} of {config.data.patch_size} pixels"
        size = f"{config.model.num_blocks} x {config.model.channels}, {patches}"
        table.add_row(size, f"{ours:.0f}", f"{pytorch:.0f}", f"{pytorch / ours:.2f}")
    console.print(table)
    hours, in_pytorch = _paper_hours(times)
    console.print(
        f"{load_config(PRESETS[PAPER]).train.iterations} of the larger steps, the paper's "
        f"training, take {hours:.3g} hours here, and {in_pytorch:.3g} in PyTorch.",
        highlight=False,
    )


def _paper_hours(times: dict[str, StepCost]) -> tuple[float, float]:
    """Of the paper's training, on our kernels and in PyTorch."""
    iterations = load_config(PRESETS[PAPER]).train.iterations
    ours, pytorch, _ = times[PAPER]
    return ours * iterations / 3_600_000, pytorch * iterations / 3_600_000


def _write_metrics(
    path: Path,
    config: Config,
    bicubic: Quality,
    results: dict[str, Result],
    times: dict[str, StepCost],
) -> None:
    metrics: dict[str, Any] = {
        "bicubic_psnr": bicubic.psnr,
        "bicubic_ssim": bicubic.ssim,
        "seconds": sum(result.seconds for result in results.values()),
    }
    for name, (score, parameters, iterations, seconds) in results.items():
        key = _key(name)
        metrics |= {f"{key}_psnr": score.psnr, f"{key}_ssim": score.ssim}
        metrics |= {f"{key}_parameters": parameters, f"{key}_iterations": iterations}
        metrics[f"{key}_seconds"] = seconds
    metrics["step_ms"] = {name: cost._asdict() for name, cost in times.items()}
    metrics["paper_hours"] = dict(zip(("ours", "pytorch"), _paper_hours(times), strict=True))
    metrics["config"] = config.model_dump(mode="json")
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _draw_comparison(path: Path, pairs: list[Pair], students: dict[str, EDSR]) -> None:
    by_name = {pair.name: pair for pair in pairs}
    columns = 3 + len(students)
    figure = Figure(figsize=(3 * columns, 6.6), layout="constrained")
    axes = figure.subplots(len(CROPS), columns, squeeze=False)
    for row, (name, top, left) in zip(axes, CROPS, strict=True):
        pair = by_name[name]
        scale = pair.hr.shape[0] // pair.lr.shape[0]
        images = {
            "LR": np.asarray(
                Image.fromarray(pair.lr).resize(pair.hr.shape[1::-1], Image.Resampling.NEAREST)
            ),
            "bicubic": bicubic_upscale(pair.lr, scale),
            **{f"SR, {key}": upscale(student, pair.lr) for key, student in students.items()},
            "HR": pair.hr,
        }
        for axis, (title, image) in zip(row, images.items(), strict=True):
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
