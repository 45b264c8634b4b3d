"""gpu.json and gpu.md: the rows of `gpu.py` with their floors and ratios."""

import json
from pathlib import Path
from typing import Any

import gpu_measure

#: Columns of the table, where they were measured.
IMPLEMENTATIONS = ("ours", "triton", "cudnn", "eager", "compile", "max_autotune")

LEGEND = (
    "Medians in microseconds; in brackets, over ours: the faster one of its eager calls and its "
    "CUDA graph, measured in turns with it. Kernel: what serves ours; reference is PyTorch."
)


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {**result, "rows": complete(result)}
    (folder / "gpu.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "gpu.md").write_text(markdown(result))


def complete(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with floor, measured over floor, and where they were measured."""
    rows = []
    for row in result["rows"]:
        floors = {}
        if result["ceilings"] is not None and "us" in row:
            ceiling = gpu_measure.Ceilings(**result["ceilings"])
            floor = gpu_measure.floor_us(row["flops"], row["bytes"], ceiling)
            floors = {"floor_us": floor, "times_floor": row["us"] / floor}
        rows.append({**row, **floors, **(result["environment"] or {})})
    return rows


def markdown(result: dict[str, Any]) -> str:
    lines = [f"# {heading(result)}", ""]
    if result["ceilings"] is not None:
        ceiling = gpu_measure.Ceilings(**result["ceilings"])
        lines += [
            f"Ceilings, measured here: {ceiling.tflops:.0f} TFLOP/s in bfloat16, "
            f"{ceiling.terabytes_per_second:.2f} TB/s.",
            "",
        ]
    lines += [LEGEND, "", *table(complete(result))]
    failures = [row for row in result["rows"] if "error" in row]
    if failures:
        lines += ["", "Not timed:", ""]
        lines += [f"- {row['problem']}, {row['mode']}: {row['error']}" for row in failures]
    if result["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [f"- {entry['item']}: {entry['reason']}" for entry in result["left_out"]]
    return "\n".join(lines) + "\n"


def heading(result: dict[str, Any]) -> str:
    environment = result["environment"]
    if environment is None:
        return "No result"
    return (
        f"{environment['device']}, driver {environment['driver']}, torch {environment['torch']}, "
        f"commit {environment['commit']}"
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line a problem and mode, a column an implementation."""
    timed = [row for row in rows if "us" in row]
    suffixes = ("", gpu_measure.GRAPH)
    names = [name + suffix for name in IMPLEMENTATIONS for suffix in suffixes]
    names = [name for name in names if any(row["implementation"] == name for row in timed)]
    titles = [name.replace("_", " ") for name in names]
    header = ["problem", "mode", "kernel", "floor", *titles, "ours / floor"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in timed:
        group = groups.setdefault((row["problem"], row["mode"]), {})
        group.setdefault(row["implementation"], row)  # ours: from the first item
    for (problem, mode), group in groups.items():
        first = next(iter(group.values()))
        ours = [row["times_floor"] for name, row in group.items() if is_ours(name, row)]
        cells = [problem, mode, first["our_kernel"], number(first.get("floor_us"))]
        cells += [entry(group.get(name)) for name in names]
        cells.append(number(min(ours, default=None)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def is_ours(name: str, row: dict[str, Any]) -> bool:
    return name.startswith("ours") and "times_floor" in row


def entry(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["implementation"].startswith("ours") or row["times_ours"] is None:
        return number(row["us"])
    return f"{number(row['us'])} ({row['times_ours']:.2f})"


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
