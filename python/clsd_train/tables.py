"""The table of a study: a row for each variant and combination of options, over its seeds."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .cell import Record
from .metrics import Quality
from .study import Cell, Group, Study

MIB = 2**20


class Value(NamedTuple):
    """Mean over seeds, and the sample standard deviation if there are several."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Value":
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), spread)

    def text(self, digits: int) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


class Row(NamedTuple):
    """A variant under some options.

    Attributes:
        group: its options.
        variant: its name.
        seeds: that have finished.
        iterations: of the first seed.
        parameters: in training.
        psnr: of each set, in dB.
        ssim: of each set.
        gain: of each set, dB over the baseline of the same options, length and seeds; without
            those that have none.
        milliseconds: of a step.
        slowdown: of a step, over the baseline's.
        hours: of training, or of as many iterations as the study states hours for.
        hours_with_teacher: the teacher's training included, if it has one.
        peak_bytes: of memory.
        memory_ratio: over the baseline's.
        bicubic: bicubic's scores on each set.
    """

    group: Group
    variant: str
    seeds: tuple[int, ...]
    iterations: int
    parameters: int
    psnr: dict[str, Value]
    ssim: dict[str, Value]
    gain: dict[str, Value]
    milliseconds: Value
    slowdown: float | None
    hours: float
    hours_with_teacher: float | None
    peak_bytes: float
    memory_ratio: float | None
    bicubic: dict[str, Quality]


def make_rows(study: Study, cells: Sequence[Cell], records: Mapping[str, Record]) -> list[Row]:
    """Rows of finished cells, in the study's order.

    Args:
        study: the study.
        cells: finished ones.
        records: theirs, by name.
    """
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.group.label, cell.variant), []).append(cell)
    order = list(study.variants)
    groups = list(dict.fromkeys(label for label, _ in grouped))
    keys = sorted(grouped, key=lambda key: (groups.index(key[0]), order.index(key[1])))
    plain = [cell for cell in cells if cell.variant == study.baseline]
    return [_make_row(study, grouped[key], plain, records) for key in keys]


def _make_row(
    study: Study, cells: list[Cell], plain: list[Cell], records: Mapping[str, Record]
) -> Row:
    own = [records[cell.name] for cell in cells]
    beside = [
        (record, _counterpart(cell, plain, records))
        for cell, record in zip(cells, own, strict=True)
    ]
    compared = [(record, other) for record, other in beside if other]
    equal = [pair for pair in compared if pair[0].iterations == pair[1].iterations]
    milliseconds = Value.of([record.milliseconds for record in own])
    peak = statistics.fmean(record.peak_bytes for record in own)
    taught_by = [records[cell.teacher.name] for cell in cells if cell.teacher]
    hours, of_teachers = (
        [record.hours_for(study.hours_for or record.iterations) for record in group]
        for group in (own, taught_by)
    )
    mean = statistics.fmean(hours)
    return Row(
        group=cells[0].group,
        variant=cells[0].variant,
        seeds=tuple(cell.seed for cell in cells),
        iterations=own[0].iterations,
        parameters=own[0].parameters,
        psnr={name: Value.of([record.scores[name].psnr for record in own])
              for name in own[0].scores},
        ssim={name: Value.of([record.scores[name].ssim for record in own])
              for name in own[0].scores},
        gain={
            name: Value.of([a.scores[name].psnr - b.scores[name].psnr for a, b in equal])
            for name in own[0].scores
            if equal
        },
        milliseconds=milliseconds,
        slowdown=_ratio(compared, lambda record: record.milliseconds),
        hours=mean,
        hours_with_teacher=mean + statistics.fmean(of_teachers) if of_teachers else None,
        peak_bytes=peak,
        memory_ratio=_ratio(compared, lambda record: record.peak_bytes),
        bicubic=own[0].bicubic,
    )  # fmt: skip


def _counterpart(cell: Cell, plain: list[Cell], records: Mapping[str, Record]) -> Record | None:
    """The baseline's record at the cell's options, as far as they concern it, and seed."""
    items = set(map(str, cell.group.items))
    for other in plain:
        if other.seed == cell.seed and set(map(str, other.group.items)) <= items:
            return records[other.name]
    return None


def _ratio(pairs: list[tuple[Record, Record]], value: Callable[[Record], float]) -> float | None:
    own, other = (statistics.fmean(map(value, records)) if records else 0
                  for records in (zip(*pairs, strict=True) if pairs else ((), ())))  # fmt: skip
    return own / other if other > 0 else None


def to_markdown(
    study: Study, rows: Sequence[Row], records: Mapping[str, Record], images: Sequence[str]
) -> str:
    """The document of a study: heading, table, what it means, and its images."""
    header, *body = cells_of_table(study, rows, records)
    lines = [f"# {study.title}", "", *([study.about, ""] if study.about else [])]
    lines += [_line(header), _line(["---"] * len(header)), *map(_line, body), ""]
    lines += [
        f"Y-PSNR in dB and SSIM on Y; ± is the sample standard deviation over seeds. dB against "
        f"`{study.baseline}` are of equal options, seeds and iterations. Hours are iterations "
        "times the median step, without validation. Memory is what the process grew by on a CPU, "
        "and what was allocated on a GPU.",
    ]
    if {"lfd"} & {variant.method for variant in study.variants.values()}:
        lines.append("`lfd` is reconstructed: it measures its paper's idea, not its formula.")
    lines += ["", *machines(records), ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in images]
    return "\n".join(lines).rstrip() + "\n"


def cells_of_table(
    study: Study, rows: Sequence[Row], records: Mapping[str, Record]
) -> list[list[str]]:
    """The table as texts, its header first."""
    options, sets = list(study.options), list(next(iter(records.values())).scores)
    with_teacher = any(row.hours_with_teacher is not None for row in rows)
    header = [*options, "variant", "seeds", "iterations", "parameters"]
    for name in sets:
        header += [f"{name} dB", f"against {study.baseline}", f"{name} SSIM"]
    length = f" of {study.hours_for:,}" if study.hours_for else ""
    header += ["ms a step", f"of {study.baseline}", f"hours{length}"]
    header += ["with its teacher"] * with_teacher + ["peak MiB", f"of {study.baseline}"]
    table = [header]
    shown_before = None
    for row in rows:
        items = dict(row.group.items)
        if row.bicubic != shown_before:
            shown_before = row.bicubic
            line = [str(items.get(option, "")) for option in options] + ["bicubic", "", "", ""]
            for name in sets:
                line += [f"{row.bicubic[name].psnr:.3f}", "", f"{row.bicubic[name].ssim:.4f}"]
            table.append(line + [""] * (len(header) - len(line)))
        line = [str(items.get(option, "")) for option in options]
        line += [row.variant, str(len(row.seeds)), f"{row.iterations:,}", f"{row.parameters:,}"]
        for name in sets:
            gain = row.gain.get(name)
            shown = f"{gain.mean:+.3f}" + ("" if gain.spread is None else f" ± {gain.spread:.3f}") \
                if gain and row.variant != study.baseline else ""  # fmt: skip
            line += [row.psnr[name].text(3), shown, row.ssim[name].text(4)]
        line += [row.milliseconds.text(1), _times(row.slowdown), _hours(row.hours)]
        line += [_hours(row.hours_with_teacher)] * with_teacher
        line += [f"{row.peak_bytes / MIB:.0f}", _times(row.memory_ratio)]
        table.append(line)
    return table


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def machines(records: Mapping[str, Record]) -> list[str]:
    """A line for each set of versions and devices that cells ran on."""
    keys = ("clsd_fast", "torch", "processor", "threads", "GPU")
    texts = (
        ", ".join(f"{key} {record.machine[key]}" for key in keys if key in record.machine)
        for record in records.values()
    )
    return [f"Measured with {text}." for text in dict.fromkeys(texts)]


def _plain(row: Row) -> dict[str, Any]:
    """A row as plain values by column."""
    values: dict[str, Any] = dict(row.group.items)
    values |= {"variant": row.variant, "seeds": " ".join(map(str, row.seeds)),
               "iterations": row.iterations, "parameters": row.parameters}  # fmt: skip
    for kind, scores in (("psnr", row.psnr), ("ssim", row.ssim), ("gain", row.gain)):
        for name, value in scores.items():
            values |= {f"{name}_{kind}": value.mean, f"{name}_{kind}_spread": value.spread}
    values |= {
        "milliseconds": row.milliseconds.mean,
        "milliseconds_spread": row.milliseconds.spread,
        "slowdown": row.slowdown,
        "hours": row.hours,
        "hours_with_teacher": row.hours_with_teacher,
        "peak_bytes": row.peak_bytes,
        "memory_ratio": row.memory_ratio,
    }
    return values


def to_csv(rows: Sequence[Row]) -> str:
    """A line of plain values for each row."""
    lines = [_plain(row) for row in rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(
    study: Study, cells: Sequence[Cell], rows: Sequence[Row], records: Mapping[str, Record]
) -> str:
    """The rows, and of each cell what it was and what was measured."""
    content = {
        "study": study.model_dump(mode="json"),
        "rows": [_plain(row) for row in rows],
        "cells": [
            {
                "name": cell.name,
                "variant": cell.variant,
                "options": dict(cell.group.items),
                "seed": cell.seed,
                **records[cell.name].plain(),
            }
            for cell in cells
        ],
    }
    return json.dumps(content, indent=2) + "\n"
