"""What ``clsd compare`` runs: methods, options and seeds under one configuration."""

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt

from .config import (
    Config,
    Count,
    Folders,
    Section,
    Seed,
    is_key,
    is_text,
    merge,
    parse_override,
    read_yaml,
    validate,
    validate_config,
)
from .errors import UserError, shorten
from .paths import absolute, expand_input
from .preset import PRESETS
from .yaml_text import parse

SHIPPED = Path(__file__).parent / "studies"
# An option that is no setting of a run: which kernels it runs on.
BACKEND = "backend"
BACKENDS = ("auto", "native", "triton", "reference")


class SetConfig(Section):
    """Images that finished students are scored on; {scale} in a path is the scale."""

    hr: Folders = Field(min_length=1, description="folders of HR images")
    lr: Folders = Field(default=(), description="folders of their LR images; none: made by bicubic")


class Variant(Section):
    """A method, which is a row of the table for each combination of options."""

    method: Literal["baseline", "ds", "cl", "clsd", "fakd", "lfd"] = Field(
        description="as the setting of this name"
    )
    settings: dict[str, Any] = Field(default={}, description="settings of its own, by section")
    teacher: str | None = Field(
        default=None, description="variant whose student is trained first, to be the teacher"
    )
    time_of: str | None = Field(
        default=None,
        description="variant whose training time it gets: as many iterations as the study's "
        "baseline, of which it is a copy, does in that time",
    )
    ignores: tuple[str, ...] = Field(default=(), description="options that do not concern it")
    seeds: tuple[Seed, ...] | None = Field(default=None, description="seeds of its own")


class Crop(Section):
    """A part of an image for the pictures, in HR pixels."""

    set: str = Field(description="name of the set")
    image: str = Field(description="name of the image")
    top: NonNegativeInt = Field(description="first row")
    left: NonNegativeInt = Field(description="first column")
    size: Count = Field(default=96, description="side")


class Study(Section):
    """Everything a study is made from."""

    title: str = Field(description="heading of its table")
    about: str = Field(default="", description="paragraph below the heading")
    baseline: str = Field(description="variant that the others are compared with")
    variants: dict[str, Variant] = Field(min_length=1, description="the methods, by name")
    options: dict[str, list[Any]] = Field(
        default={}, description="values of settings, each combination of which is run"
    )
    seeds: tuple[Seed, ...] = Field(
        default=(0,), min_length=1, description="of weights and batches"
    )
    base: dict[str, Any] = Field(default={}, description="settings of all runs, by section")
    sets: dict[str, SetConfig] = Field(default={}, description="sets of images to score on")
    curves: bool = Field(
        default=True, description="whether runs validate on the first set as they train"
    )
    hours_for: Count | None = Field(
        default=None, description="iterations that hours are stated for; null: those that were run"
    )
    photographs: bool = Field(
        default=False, description="whether to use scikit-image's where base.data.train names none"
    )
    crops: tuple[Crop, ...] = Field(
        default=(), description="parts of images to show; none: of each set's first image one"
    )


class Group(NamedTuple):
    """Keys and values of options, which name a group of rows."""

    items: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.items)


class Cell(NamedTuple):
    """One training: a variant with options and a seed.

    Attributes:
        variant: its name.
        group: its options, without those it ignores.
        seed: of its weights and batches.
        config: of its run; not final before those it depends on have finished.
        backend: which kernels it runs on.
        teacher: the cell whose student is its teacher, or None.
        timed_by: the cell whose time it gets, and the baseline's that says what fits in it, or
            None.
    """

    variant: str
    group: Group
    seed: int
    config: Config
    backend: str
    teacher: "Cell | None"
    timed_by: "tuple[Cell, Cell] | None"

    @property
    def name(self) -> str:
        parts = [self.variant, *(f"{key}-{value}" for key, value in self.group.items)]
        return re.sub(r"[^\w.-]+", "-", "_".join([*parts, f"seed-{self.seed}"]))

    @property
    def needs(self) -> "list[Cell]":
        return [*([self.teacher] if self.teacher else []), *(self.timed_by or ())]


def load_study(name: str, quick: bool = False, overrides: Sequence[str] = ()) -> Study:
    """A study that is shipped, by its name, or of a YAML file.

    Args:
        name: of the study or the file.
        quick: with the preset ``quick`` for all runs, and what its section ``quick`` says on top.
        overrides: ``key=value``: of the study's own keys (``seeds``, ``sets.NAME``,
            ``options.KEY``, ...), or settings of all runs.

    Raises:
        UserError: if it is missing or does not fit.
    """
    values = read_yaml(_find(name), _is_text)
    small = values.pop("quick", None)
    if quick:
        if not isinstance(small, dict):
            raise UserError(f"study: expected a section quick in {name}, got none")
        merge(values, {"base": read_yaml(PRESETS["quick"], is_text)})
        merge(values, small)
    for override in overrides:
        merge(values, _parse(override))
    study = _validate(values)
    _check_references(study)
    return study


def names() -> list[str]:
    """Of the studies that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def describe_studies() -> str:
    """The studies that are shipped, and a study's keys, for people."""
    lines = ["studies:"]
    for name in names():
        title = read_yaml(SHIPPED / f"{name}.yaml", _is_text)["title"]
        lines.append(f"  {name:12}{title}")
    for kind in (Study, Variant, SetConfig, Crop):
        lines += ["", f"  {inspect.getdoc(kind)}"]
        lines += [f"  {key:12}{field.description}" for key, field in kind.model_fields.items()]
    return "\n".join(lines)


def _find(name: str) -> Path:
    if name in names():
        return SHIPPED / f"{name}.yaml"
    path = expand_input(name)
    if not path.is_file():
        known = ", ".join(names())
        raise UserError(f"study: expected a YAML file or one of {known}, got {shorten(name)}")
    return path


def _is_text(key: str) -> bool:
    """Whether what stands at a key of a study's file is text."""
    return key.startswith("sets.") or is_text(key.removeprefix("base."))


def _parse(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    section, dot, rest = key.partition(".")
    if not equals or section not in Study.model_fields:
        return {"base": parse_override(override)}
    if section == "sets" and dot:
        name, point, part = rest.rpartition(".")
        if not point or part not in SetConfig.model_fields:
            name, part = rest, "hr"
        return {"sets": {name: {part: text}}}
    if section == "options" and dot:  # whose keys have dots themselves
        return {"options": {rest: parse(text, is_text, "the override", rest)}}
    return parse_override(override)


def _validate(values: dict[str, Any]) -> Study:
    variants = values.get("variants")
    if isinstance(variants, dict):
        values["variants"] = {
            name: validate(Variant, variant, f"study: variants.{name}")
            if isinstance(variant, dict) else variant
            for name, variant in variants.items()
        }  # fmt: skip
    return validate(Study, values, "study")


def _check_references(study: Study) -> None:
    variants = study.variants

    def check(key: str, name: str | None, known: Sequence[str]) -> None:
        if name is not None and name not in known:
            raise UserError(f"study: {key}: expected one of {', '.join(known)}, got {name!r}")

    check("baseline", study.baseline, list(variants))
    for name, variant in variants.items():
        for key in ("teacher", "time_of"):
            check(f"variants.{name}.{key}", getattr(variant, key), list(variants))
        for option in variant.ignores:
            check(f"variants.{name}.ignores", option, list(study.options))
        list(_dependencies(study, name, ()))
    for crop in study.crops if study.sets else ():
        check("crops.set", crop.set, list(study.sets))
    for option, values in study.options.items():
        if option != BACKEND and not is_key(option):
            raise UserError(f"study: options: expected settings or {BACKEND}, got {option!r}")
        if not values:
            raise UserError(f"study: options.{option}: expected a list of values, got none")
    for backend in study.options.get(BACKEND, []):
        check(f"options.{BACKEND}", str(backend), BACKENDS)


def _dependencies(study: Study, name: str, above: tuple[str, ...]) -> Iterator[str]:
    if name in above:
        circle = " -> ".join([*above, name])
        raise UserError(f"study: variants: expected no circle, got {circle}")
    variant = study.variants[name]
    timed = [variant.time_of, study.baseline] if variant.time_of else []
    for other in filter(None, [variant.teacher, *timed]):
        yield from _dependencies(study, other, (*above, name))
        yield other


def make_cells(study: Study, output: Path) -> list[Cell]:
    """Every training of the study, each behind those that it depends on.

    Args:
        study: the study.
        output: its folder; a cell's run is in ``output/cells/NAME``.

    Raises:
        UserError: if settings do not fit.
    """
    made: dict[str, Cell] = {}

    def make(name: str, options: dict[str, Any], seed: int) -> Cell:
        variant = study.variants[name]
        seeds = variant.seeds or study.seeds
        seed = seed if seed in seeds else seeds[0]
        own = Group(tuple((k, v) for k, v in options.items() if k not in variant.ignores))
        teacher = make(variant.teacher, options, seed) if variant.teacher else None
        timed_by = None
        if variant.time_of:
            timed_by = make(variant.time_of, options, seed), make(study.baseline, options, seed)
        cell = Cell(name, own, seed, Config(), "auto", teacher, timed_by)
        if cell.name not in made:
            made[cell.name] = _configure(study, cell, output)
        return made[cell.name]

    combinations = itertools.product(*study.options.values())
    for values in combinations:
        for name, variant in study.variants.items():
            for seed in variant.seeds or study.seeds:
                make(name, dict(zip(study.options, values, strict=True)), seed)
    return list(made.values())


def _configure(study: Study, cell: Cell, output: Path) -> Cell:
    variant, options = study.variants[cell.variant], dict(cell.group.items)
    backend = str(options.pop(BACKEND, "auto"))
    values: dict[str, Any] = {}
    for settings in (study.base, variant.settings, {"method": variant.method}):
        merge(values, _copy(settings))
    for key, value in options.items():
        merge(values, _by_section(key, value))
    merge(values, {"train": {"seed": cell.seed}, "output": str(output / "cells" / cell.name)})
    if cell.teacher:
        file = cell.teacher.config.output / "student.safetensors"
        merge(values, {"teacher": {"checkpoint": str(file)}})
    scale = values.get("scale", Config().scale)
    if study.curves and study.sets:
        folders = next(iter(study.sets.values()))
        data = {"val": list(map(str, folders.hr)), "val_lr": list(map(str, folders.lr))}
        merge(values, {"data": data})
    config = validate_config(_map_texts(values, partial(_fill, scale=scale)))
    return cell._replace(config=config.with_absolute_paths(), backend=backend)


def sets_of(study: Study, scale: int) -> dict[str, SetConfig]:
    """The sets for a scale."""
    return {
        name: validate(
            SetConfig,
            {
                key: absolute([Path(_fill(str(path), scale)) for path in getattr(folders, key)])
                for key in ("hr", "lr")
            },
            f"study: sets.{name}",
        )
        for name, folders in study.sets.items()
    }


def _fill(text: str, scale: Any) -> str:
    return text.replace("{scale}", str(scale))


def _copy(values: Any) -> Any:
    return _map_texts(values, str)


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_texts(inner, function) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_texts(inner, function) for inner in value]
    return function(value) if isinstance(value, str) else value


def _by_section(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value
