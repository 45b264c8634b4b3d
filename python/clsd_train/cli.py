"""The command ``clsd``."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from clsd_fast import EDSR
from clsd_fast.env import report

from .checkpoint import load_student
from .config import load_config
from .data import Pair, decode_pairs
from .errors import Notice, UserError
from .images import bicubic_upscale
from .listing import summarize
from .metrics import Quality, mean_quality, quality
from .pairing import PairFiles, find_pairs
from .upscale import plan_upscaling, upscale_files
from .upscale import upscale as upscale_image

MEAN = "mean"  # what the mean of all images' scores is called


def train(
    settings: Positional[tuple[str, ...]] = (),
    resume: bool = False,
) -> None:
    """Train a student.

    Args:
        settings: a YAML file (optional, first), then overrides such as train.iterations=300.
        resume: continue the run in the output folder.
    """
    from .loop import STUDENT, Run  # tensorboard takes a second to import

    is_file = bool(settings) and "=" not in settings[0]
    config = load_config(Path(settings[0]) if is_file else None, settings[is_file:])
    Run(config, resume).train()
    print(f"wrote {config.output / STUDENT}")


def evaluate(
    checkpoint: Positional[Path],
    hr: Positional[tuple[Path, ...]],
    lr: tuple[Path, ...] = (),
    json_path: Annotated[Path | None, arg(name="json")] = None,
) -> None:
    """Score a student on folders of images: PSNR and SSIM on Y, beside bicubic.

    Args:
        checkpoint: weights of a student.
        hr: folders of HR images.
        lr: folders of their LR images; made by MATLAB's bicubic if not given.
        json_path: also write the scores to this file.
    """
    student = load_student(checkpoint)
    if not hr:
        raise UserError("eval: expected a folder of HR images, got none")
    if json_path and not json_path.parent.is_dir():
        raise UserError(f"eval: expected an existing folder for {json_path}, got none")
    listing = find_pairs(hr, lr, student.scale)
    _check_names(listing.files)
    scores = {
        pair.name: _score(student, pair) for pair in decode_pairs(listing.files, student.scale)
    }
    bicubics, students = zip(*scores.values(), strict=True)
    rows = {**scores, MEAN: (mean_quality(bicubics), mean_quality(students))}
    _print_scores(student.scale, rows)
    if json_path:
        content = {
            name: {"bicubic": bicubic._asdict(), "student": ours._asdict()}
            for name, (bicubic, ours) in rows.items()
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"clsd: {summarize('eval', len(scores), listing.left_out)}", file=sys.stderr)


def _check_names(files: Sequence[PairFiles]) -> None:
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


def _score(student: EDSR, pair: Pair) -> tuple[Quality, Quality]:
    candidates = bicubic_upscale(pair.lr, student.scale), upscale_image(student, pair.lr)
    try:
        bicubic, ours = (quality(sr, pair.hr, student.scale) for sr in candidates)
    except ValueError as error:
        raise UserError(f"eval: {pair.name}: {error}") from None
    return bicubic, ours


def _print_scores(scale: int, scores: dict[str, tuple[Quality, Quality]]) -> None:
    table = Table("image", "bicubic dB", "student dB", "bicubic SSIM", "student SSIM")
    for name, (bicubic, ours) in scores.items():
        decibels = f"{bicubic.psnr:.2f}", f"{ours.psnr:.2f}"
        table.add_row(Text(name), *decibels, f"{bicubic.ssim:.4f}", f"{ours.ssim:.4f}")
    table.title = f"x{scale}, Y channel, {scale} pixels shaved"
    Console().print(table)


def upscale(
    checkpoint: Positional[Path],
    inputs: Positional[tuple[Path, ...]],
    output: Path,
    overwrite: bool = False,
) -> None:
    """Upscale images to PNG.

    Args:
        checkpoint: weights of a student.
        inputs: image files and folders of them.
        output: folder for NAME_x<scale>.png, at the path below the given folder.
        overwrite: replace existing files.
    """
    student = load_student(checkpoint)
    tasks, left_out = plan_upscaling(inputs, output, student.scale, overwrite)
    for target in upscale_files(student, tasks):
        print(f"wrote {target}")
    if any(item.is_dir() for item in inputs):
        print(f"clsd: {summarize('upscale', len(tasks), left_out)}", file=sys.stderr)


def info(checkpoint: Positional[Path | None] = None) -> None:
    """Describe a checkpoint, or this installation.

    Args:
        checkpoint: weights of a student; without, the installation is described.
    """
    if checkpoint is None:
        rows = report()
    else:
        student = load_student(checkpoint)
        trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
        rows = {
            "architecture": f"EDSR x{student.scale}",
            "residual blocks": str(student.num_blocks),
            "channels": str(student.channels),
            "res_scale": str(student.res_scale),
            "value range": f"0..{student.value_range:g}",
            "parameters": f"{trainable:,}",
        }
    for name, value in rows.items():
        print(f"{name:20}{value}")


def demo(output: Path = Path("demo-output")) -> None:
    """Train a small student with and without CLSD on photographs of scikit-image.

    Args:
        output: new or empty folder for metrics.json, comparison.png and curve.png.
    """
    from .demo import run_demo

    run_demo(output)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "upscale": upscale,
    "info": info,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; bad input prints one line on stderr and exits with 2."""
    warnings.filterwarnings("always", category=Notice)
    warnings.showwarning = lambda message, *_: print(f"clsd: warning: {message}", file=sys.stderr)
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="clsd", args=arguments)
    except (UserError, OSError) as error:
        print(f"clsd: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("clsd: interrupted; the last checkpoint is kept", file=sys.stderr)
        raise SystemExit(130) from None
