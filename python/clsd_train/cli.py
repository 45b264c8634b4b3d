"""The command ``clsd``."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    NAMINGS,
    WEIGHTS,
    Parser,
    add_checkpoint,
    add_target,
    add_upscaling,
    checked,
)
from .errors import SharedError, UserError, is_first, tell, tell_notices
from .interrupt import Interrupted, RaiseOnSignal
from .paths import expand_input, expand_inputs, expand_path

# PyTorch takes more than a second to import: no command waits for what it does not use.
if TYPE_CHECKING:
    from clsd_fast import EDSR


def train(arguments: Sequence[str]) -> None:
    """Train a student."""
    parser = _settings_parser("train", train)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the output folder's run with its settings, or begin where there is none",
    )
    options = parser.parse(arguments)
    from .run_config import read_settings

    config = read_settings(options.settings)
    from .loop import Run
    from .run_folder import STUDENT, saved_config

    if options.resume:
        output = config.output  # a saved one is from before the folder was moved
        config = read_settings(options.settings, saved_config(output))
        config = config.model_copy(update={"output": output})
    Run(config, options.resume).train()
    if is_first():
        print(f"wrote {config.output / STUDENT}")


def print_config(arguments: Sequence[str]) -> None:
    """Print all settings as YAML, with their meanings."""
    from .run_config import read_settings

    options = _settings_parser("config", print_config).parse(arguments)
    print(read_settings(options.settings).to_yaml(), end="")


def _settings_parser(command: str, function: Callable[..., None]) -> Parser:
    from .preset import PRESETS
    from .run_config import describe_settings

    parser = Parser(command, description=function.__doc__, epilog=describe_settings())
    parser.add_argument(
        "settings",
        nargs="*",
        help=f"a YAML file or a preset ({', '.join(PRESETS)}), and overrides such as "
        "train.iterations=300; a file that is called like a preset is ./NAME",
    )
    return parser


def evaluate(arguments: Sequence[str]) -> None:
    """Score students on folders of images: PSNR and SSIM, beside bicubic."""
    parser = Parser("eval", description=evaluate.__doc__)
    add_checkpoint(parser, nargs="?")
    parser.add_argument(
        "hr",
        nargs="*",
        help="folders of HR images, NAME=FOLDER for a mean of their own; further weights, to be "
        "scored beside the first",
    )
    parser.add_argument(
        "--lr",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="folders of their LR images; made by MATLAB's bicubic if not given",
    )
    parser.add_argument("--rgb", action="store_true", help="score RGB, not Y")
    add_upscaling(parser)
    add_target(parser, "--json", help="also write the scores to this file")
    add_target(parser, "--csv", help="also write them here, a line for each image and method")
    options = parser.parse(arguments)
    if options.checkpoint is None:
        _take_checkpoint_of_lr(options)
    weights = [options.checkpoint]
    folders: list[str] = []
    for word in options.hr:
        (weights if _names_weights(word) else folders).append(word)
    lr = _expand("eval", options.lr)
    if not folders:
        hint = f" (--lr takes all of {', '.join(options.lr)})" if lr else ""
        raise UserError(f"eval: expected a folder of HR images, got none{hint}")
    from .files import check_new

    for path in (options.json, options.csv):
        if path:
            check_new(path, "eval", overwrite=True)
    from . import evaluation
    from .listing import summarize

    sets = evaluation.image_sets(folders, lr)
    students = evaluation.name_students(_expand("eval", weights), lambda path: _load(options, path))
    scores, used, left_out = evaluation.evaluate(
        students, sets, evaluation.Measure(options.rgb, options.ensemble, options.tile)
    )
    scale = next(iter(students.values())).scale
    channels = "RGB" if options.rgb else "Y channel"
    evaluation.print_scores(scores, f"x{scale}, {channels}, {scale} pixels shaved")
    if options.json:
        evaluation.write_json(options.json, scores)
    if options.csv:
        evaluation.write_csv(options.csv, scores)
    tell(summarize("eval", used, left_out))


def _names_weights(word: str) -> bool:
    return word.lower().endswith(WEIGHTS) and not os.path.isdir(os.path.expanduser(word))


def _take_checkpoint_of_lr(options: argparse.Namespace) -> None:
    """``--lr`` takes all words up to the next option: a file among them is no folder of images."""
    for place, word in enumerate(options.lr):
        if os.path.isfile(os.path.expanduser(word)):
            options.checkpoint = expand_path(word)
            options.hr = options.lr[place + 1 :] + options.hr
            options.lr = options.lr[:place]
            return
    raise UserError("eval: expected weights of a student and folders of HR images, got none")


def upscale(arguments: Sequence[str]) -> None:
    """Upscale images to PNG."""
    parser = Parser("upscale", description=upscale.__doc__)
    add_checkpoint(parser)
    parser.add_argument("inputs", nargs="*", help="image files and folders of them")
    add_target(
        parser,
        "--output",
        required=True,
        help="folder for NAME_x<scale>.png, at the path below the given folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_upscaling(parser)
    options = parser.parse(arguments)
    inputs, output = _expand("upscale", options.inputs), options.output
    student = _load(options)
    from .listing import summarize
    from .progress import track
    from .upscale import plan_upscaling, upscale_files

    tasks, left_out = plan_upscaling(inputs, output, student.scale, options.overwrite)
    targets = upscale_files(student, tasks, options.tile, options.ensemble)
    for target in track(targets, len(tasks)):
        print(f"wrote {target}")
    if any(item.is_dir() for item in inputs):
        tell(summarize("upscale", len(tasks), left_out))


def export(arguments: Sequence[str]) -> None:
    """Write a student for other programs: weights, torch.export or ONNX."""
    parser = Parser("export", description=export.__doc__)
    add_checkpoint(parser)
    add_target(
        parser,
        "--output",
        required=True,
        help="file; its suffix is the format: .safetensors, .pth, .pt2 (torch.export), .onnx",
    )
    parser.add_argument(
        "--naming", choices=NAMINGS, default=NAMINGS[0], help="whose names weights have"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse(arguments)
    from .export import basicsr_options, check_export
    from .export import export as write

    check_export(options.output, options.naming, options.overwrite)
    student = _load(options)
    write(student, options.output, options.naming)
    if options.naming == "basicsr":
        print(basicsr_options(student))
    print(f"wrote {options.output}")


def convert(arguments: Sequence[str]) -> None:
    """Make a checkpoint of this trainer of another code's, which says how it is read."""
    parser = Parser("convert", description=convert.__doc__)
    add_checkpoint(parser)
    add_target(parser, "--output", required=True, help="file, .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse(arguments)
    if options.output.suffix.lower() != ".safetensors":
        raise UserError(f"convert: expected a file .safetensors, got {options.output}")
    from .files import check_new

    check_new(options.output, "convert", options.overwrite)
    student = _load(options)
    from .checkpoint import save_student

    save_student(student, options.output)
    print(f"wrote {options.output}")


def info(arguments: Sequence[str]) -> None:
    """Describe a checkpoint, or this installation."""
    parser = Parser("info", description=info.__doc__)
    add_checkpoint(parser, nargs="?")
    options = parser.parse(arguments)
    if options.checkpoint is None:
        from clsd_fast.env import report

        rows = report()
    else:
        student = _load(options)
        from .architecture import Reading

        trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
        rows = {
            "architecture": f"EDSR x{student.scale}",
            "residual blocks": str(student.num_blocks),
            "channels": str(student.channels),
            "res_scale": str(student.res_scale),
            "value range": f"0..{student.value_range:g}",
            "mean shift": "yes" if Reading.of(student).mean_shift else "no",
            "parameters": f"{trainable:,}",
        }
    for name, value in rows.items():
        print(f"{name:20}{value}")


def compare(arguments: Sequence[str]) -> None:
    """Train methods, options and seeds of a study, and write their table."""
    from .study import describe_studies, load_study

    parser = Parser("compare", description=compare.__doc__, epilog=describe_studies())
    parser.add_argument("study", help="name of a study that is shipped, or its YAML file")
    parser.add_argument(
        "settings",
        nargs="*",
        help="overrides: of the study, such as seeds=[0,1] or sets.Set5=FOLDER, or of all its runs",
    )
    parser.add_argument(
        "--quick", action="store_true", help="its small size, which ends in minutes on a CPU"
    )
    parser.add_argument("--stop", action="store_true", help="end at the first run that fails")
    add_target(
        parser, "--output", help="its folder, which goes on where it stopped: experiments/STUDY"
    )
    options = parser.parse(arguments)
    study = load_study(options.study, options.quick, options.settings)
    name = Path(options.study).stem + "-quick" * options.quick
    output = options.output or Path("experiments") / name
    from .compare import compare as run_study

    run_study(study, output, options.stop)
    print((output / "table.md").read_text(encoding="utf-8"), end="")
    print(f"wrote {output / 'table.md'}")


def report(arguments: Sequence[str]) -> None:
    """Write one HTML page of a run or a study."""
    parser = Parser("report", description=report.__doc__)
    parser.add_argument("folder", type=checked(expand_input), help="folder of a run or of a study")
    add_target(parser, "--output", help="the page; report.html in that folder if not given")
    options = parser.parse(arguments)
    from .report import write_report

    page = options.output or options.folder / "report.html"
    write_report(options.folder, page)
    print(f"wrote {page}")


def demo(arguments: Sequence[str]) -> None:
    """Train a small student with and without CLSD on photographs of scikit-image."""
    parser = Parser("demo", description=demo.__doc__)
    add_target(
        parser,
        "--output",
        default=Path("demo-output"),
        help="new or empty folder for metrics.json, comparison.png and curve.png",
    )
    options = parser.parse(arguments)
    from .demo import run_demo

    run_demo(options.output)


def _load(options: argparse.Namespace, path: Path | None = None) -> "EDSR":
    from .checkpoint import load_student

    path = options.checkpoint if path is None else path
    return load_student(path, options.res_scale, options.value_range, options.mean_shift)


def _expand(command: str, texts: Sequence[str | Path]) -> tuple[Path, ...]:
    try:
        return expand_inputs(texts)
    except UserError as error:
        raise UserError(f"{command}: {error}") from None


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "train": train,
    "config": print_config,
    "eval": evaluate,
    "upscale": upscale,
    "export": export,
    "convert": convert,
    "info": info,
    "compare": compare,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; bad input prints one line on stderr and exits with 2.

    A signal exits with 128 and its number, as a shell says it.
    """
    tell_notices()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        with RaiseOnSignal():
            _run(sys.argv[1:] if arguments is None else list(arguments))
            sys.stdout.flush()
    except Interrupted as error:
        tell(str(error))
        raise SystemExit(128 + error.signum) from None
    except BrokenPipeError:  # who reads has enough
        _drop_output()
        raise SystemExit(1) from None
    except (UserError, OSError, MemoryError, RuntimeError, ValueError) as error:
        line = _explain(error)
        if line is None:
            raise
        tell(line, everyone=not isinstance(error, SharedError))
        _drop_output()
        raise SystemExit(2) from None


def _run(arguments: list[str]) -> None:
    parser = Parser("", description="Train small super-resolution networks.")
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        COMMANDS[first](arguments[1:])
        return
    names = "\n".join(f"  {name:10}{function.__doc__}" for name, function in COMMANDS.items())
    parser.epilog = f"commands:\n{names}\n\n`clsd COMMAND --help` has the rest."
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", help="one of those below")
    options = parser.parse(arguments)
    if not options.version:
        got = repr(options.command) if options.command else "none"
        raise UserError(f"expected a command ({', '.join(COMMANDS)}), got {got}")
    print(f"clsd {_version()}")


def _version() -> str:
    import clsd_fast

    return clsd_fast.__version__


def _explain(error: Exception) -> str | None:
    """What went wrong in a sentence, None where only a traceback can say it."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        named = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        )
        return f"{named}{error.strerror or text}"
    if isinstance(error, MemoryError) or "memory" in text:
        return f"expected enough memory for these sizes, got {text or 'too little'}"
    # Of clsd_fast: a backend or an instruction set that an environment variable asks for.
    return text if re.match(r"(\w+: )+expected .*, got ", text) else None


def _drop_output() -> None:
    """Let Python's own flush at exit not fail once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
