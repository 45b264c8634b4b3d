"""``clsd compare``: every cell of a study, one after the other, and their table."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .cell import Record, train_cell
from .config import Config, changes, merge, validate_config
from .errors import UserError, one_line, shorten, tell, tell_notices
from .figures import draw_all
from .files import write_atomically
from .interrupt import Interrupted
from .lock import FolderLock
from .pairing import find_pairs
from .photographs import check_photographs, copy_photographs
from .run_folder import saved_config
from .study import Cell, SetConfig, Study, make_cells, sets_of
from .tables import make_rows, to_csv, to_json, to_markdown
from .yaml_text import dump_scalar

STUDY = "study.yaml"
# What takes most of the time that a cell takes to start. Nothing of ours: the server looks into the
# current folder first (in Python < 3.13), which may be a checkout's.
PRELOADED = ["torch"]
# Folder of photographs if none are named, and the set that they are scored on.
PHOTOGRAPHS, HELD_OUT = "photographs", "held-out"


def compare(study: Study, output: Path, stop: bool = False) -> None:
    """Run what is not finished of a study, and write its table, plots and pictures.

    A cell that fails is named and the others go on, but for those that depend on it; the next call
    tries it again. What finished before, with the same settings, is kept.

    Args:
        study: the study.
        output: its folder.
        stop: to end at the first cell that fails.

    Raises:
        UserError: if settings do not fit, before anything runs; and at the end for failed cells.
        Interrupted: after a signal; the cell that ran goes on from there at the next call.
    """
    output = output.absolute()
    study = _with_photographs(study, output)
    cells = make_cells(study, output)
    _check(study, cells)
    lock = FolderLock(output)
    try:
        if study.photographs:
            copy_photographs(output / PHOTOGRAPHS)
        _check_data(study, cells)
        text = dump_study(study)
        write_atomically(output / STUDY, lambda path: path.write_text(text, encoding="utf-8"))
        (output / "cells").mkdir(exist_ok=True)
        failed = _run(study, cells, stop)
        _write_results(study, cells, output)
    finally:
        lock.release()
    if failed:
        names = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise UserError(f"compare: expected {len(cells)} finished cells, got failures in {names}")


def dump_study(study: Study) -> str:
    """The study as YAML, which reads back as the same."""
    lines = []
    for key, value in study.model_dump(mode="json").items():
        if isinstance(value, dict) and value:
            lines.append(f"{key}:\n")
            lines += [f"  {dump_scalar(name)}: {dump_scalar(v)}\n" for name, v in value.items()]
        else:
            lines.append(f"{key}: {dump_scalar(value)}\n")
    return "".join(lines)


def record_path(cell: Cell) -> Path:
    """Where a cell's record is, once it has finished."""
    return cell.config.output.with_name(f"{cell.name}.json")


def _with_photographs(study: Study, output: Path) -> Study:
    """With scikit-image's photographs as data, where the study takes them and names no others."""
    train = study.base.get("data", {}).get("train")
    if train or not study.photographs:
        return study.model_copy(update={"photographs": False})
    check_photographs("compare")
    folder = output / PHOTOGRAPHS
    base: dict[str, Any] = {"data": {}}
    merge(base, study.base)
    data = {"train": [str(folder / "train")], "cache": str(output / "cache")}
    base["data"] = {**data, **{k: v for k, v in base["data"].items() if k != "train"}}
    sets = study.sets
    if study.curves and not sets:
        sets = {HELD_OUT: SetConfig(hr=(folder / HELD_OUT,))}
    return study.model_copy(update={"base": base, "sets": sets})


def _check(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse what would fail later, and settings other than those of what has run."""
    if not any(cell.config.data.train for cell in cells):
        raise UserError("config: data.train: expected a folder of HR images, got none")
    for cell in cells:
        own, plain = study.variants[cell.variant], study.variants[study.baseline]
        if cell.timed_by and (own.method, own.settings) != (plain.method, plain.settings):
            raise UserError(
                f"study: variants.{cell.variant}: expected method and settings of "
                f"{study.baseline} beside time_of, got others"
            )
        if record_path(cell).exists():
            settings = Record.read(record_path(cell)).settings
            _check_unchanged(cell, validate_config(settings))
        elif saved := saved_config(cell.config.output):
            _check_unchanged(cell, saved)


def _check_unchanged(cell: Cell, before: Config) -> None:
    changed = changes(before, cell.config)
    if cell.timed_by:  # how many iterations is known when the others have finished
        changed.pop("train.iterations", None)
    changed.pop("output", None)
    for key, (old, new) in changed.items():
        raise UserError(
            f"compare: expected {key}={shorten(old)} as in {cell.config.output}, "
            f"got {shorten(new)} (another --output begins anew)"
        )


def _check_data(study: Study, cells: Sequence[Cell]) -> None:
    """Raise a UserError if the images of a set are not there."""
    for scale in sorted({cell.config.scale for cell in cells}):
        for folders in sets_of(study, scale).values():
            find_pairs(folders.hr, folders.lr, scale)


def _run(study: Study, cells: Sequence[Cell], stop: bool) -> dict[str, str]:
    """Run what is not finished; the reasons of failed cells by name."""
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, 1):
        if record_path(cell).exists():
            continue
        missing = [need.name for need in cell.needs if need.name in failed]
        if missing:
            failed[cell.name] = f"needs {missing[0]}"
            continue
        tell(f"compare: cell {number} of {len(cells)}: {cell.name}")
        reason = _run_apart(cell, sets_of(study, cell.config.scale))
        if reason:
            failed[cell.name] = reason
            tell(f"compare: {cell.name} failed: {reason}")
            if stop:
                break
    return failed


def _settle(cell: Cell) -> Config:
    """The configuration of its run, now that those it depends on have finished."""
    if not cell.timed_by:
        return cell.config
    other, plain = (Record.read(record_path(need)) for need in cell.timed_by)
    iterations = max(round(plain.iterations * other.hours / plain.hours), 1)
    train = cell.config.train.model_copy(update={"iterations": iterations})
    return cell.config.model_copy(update={"train": train})


def _run_apart(cell: Cell, sets: Mapping[str, SetConfig]) -> str | None:
    """Train in another process, whose memory and whose end are its own; why it failed, if it did.

    The server that it is forked from has imported PyTorch, and run nothing of it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    arguments = theirs, _settle(cell), cell.backend, sets, record_path(cell)
    process = context.Process(target=_work, args=arguments)
    process.start()
    theirs.close()
    try:
        process.join()
    except Interrupted as interruption:
        os.kill(process.pid or 0, interruption.signum)
        process.join()
        text = f"interrupted; the next call goes on with {cell.name}"
        raise Interrupted(interruption.signum, text) from None
    try:
        return ours.recv()
    except EOFError:
        code = process.exitcode or 0
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _work(
    connection: Connection,
    config: Config,
    backend: str,
    sets: Mapping[str, SetConfig],
    record: Path,
) -> None:
    # The terminal's Ctrl-C is for who waits for this process, and hands it on once.
    os.setpgrp()
    tell_notices()
    reason = None
    try:
        train_cell(config, backend, sets, record)
    except UserError as error:
        reason = str(error)
    except Interrupted as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = one_line(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    connection.send(reason)


def _write_results(study: Study, cells: Sequence[Cell], output: Path) -> None:
    """The table, plots and pictures of what has finished."""
    paths = {cell.name: record_path(cell) for cell in cells}
    records = {name: Record.read(path) for name, path in paths.items() if path.exists()}
    if not records:
        return
    done = [cell for cell in cells if cell.name in records]
    rows = make_rows(study, done, records)
    images = draw_all(study, done, records, rows, output)
    texts = {
        "table.md": to_markdown(study, rows, records, images),
        "table.csv": to_csv(rows),
        "results.json": to_json(study, done, rows, records),
    }
    for name, text in texts.items():
        write_atomically(output / name, partial(Path.write_text, data=text, encoding="utf-8"))
