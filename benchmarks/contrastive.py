"""The contrastive operators, forward and backward, against plain PyTorch.

    python benchmarks/contrastive.py [--op info_nce | --rows 100000] [--json FILE] [--plot FILE.png]

One row an operator and shape. Before a row is timed its loss and gradients are held against plain
PyTorch in float64: ``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the
program ends with status 1. Of more than CHECKED_ROWS queries, the first so many are checked.

The baselines are what a user would write: normalise, matrix product and cross-entropy, all heads in
one batch; broadcasting, or ``torch.cdist``, for distances; and ``torch.compile`` of the first. A
table of logits above ``--largest-table`` is not tried in plain PyTorch.

``memory_mib`` is the growth of memory beside inputs and gradients, each in a process of its own
that returns freed memory. Inputs change from call to call. Freed memory goes where the C library
puts it, as in a user's program: it returns tables of 32 MiB and more to the system each time, which
costs plain PyTorch half of its time at 4096 rows. ``--keep-memory`` times without that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from cases import contest, contrast

CPU = torch.device("cpu")
MODE = contest.FORWARD_BACKWARD


def memory_mib(name: str, case: contrast.Case, options: argparse.Namespace) -> float | None:
    """Growth of memory over one call beside gradients. To be run in a new process."""
    torch.set_num_threads(options.threads)
    measure.return_freed_memory()
    small = case._replace(rows=min(case.rows, 16), features=min(case.features, 128))
    contrast.Contest(small, MODE).contender(name).call(0)  # loads the code
    call = contrast.Contest(case, MODE).contender(name).call
    growth = measure.peak_growth_mib(lambda: call(0), CPU)
    gradients = 2 * 4 * case.heads * case.rows * case.features / measure.MIB
    return None if growth is None else growth - gradients


def benchmark(case: contrast.Case, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a case."""
    rivals = contrast.Contest(case, MODE)
    names = case.names(MODE, options.compile, options.largest_table)
    contenders = {name: rivals.contender(name) for name in names}
    figure = rivals.check(contest.our_results(contenders))
    times = measure.interleave(contest.calls(contenders), CPU, options.rounds, options.seconds)
    memory = {name: measure.in_new_process(memory_mib, name, case, options) for name in names}
    return {
        **case._asdict(),
        **{f"{name}_ms": None for name in ("eager", "compile")},  # unless measured
        **measure.compare(times),
        "memory_mib": memory,
        "keeps_memory": options.keep_memory,
        "correctness": figure,
        **measure.environment(CPU),
    }


def print_row(row: dict[str, Any]) -> None:
    case = contrast.Case(*(row[field] for field in contrast.Case._fields))
    times = "  ".join(
        f"{name.removesuffix('_ms')} {value:.3f}"
        for name, value in row.items()
        if name.endswith("_ms") and isinstance(value, float)
    )
    memory = "  ".join(
        f"{name} {'?' if mib is None else f'{mib:.1f}'}" for name, mib in row["memory_mib"].items()
    )
    ratio = "no baseline fits"
    if row["best_baseline"]:
        ratio = f"{row['ratio_vs_eager']:.2f} times eager, "
        ratio += f"{row['ratio_vs_best']:.2f} times {row['best_baseline']}"
    print(
        f"{case.title}: {ratio} (errors {row['correctness']:.2f}); ms: {times}; MiB: {memory}",
        flush=True,
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of info_nce against the number of rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["op"] == "info_nce" and row["heads"] == 1]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, label in (("ours", "clsd-fast"), ("eager", "PyTorch"), ("compile", "torch.compile")):
        timed = [row for row in rows if row.get(f"{name}_ms") is not None]
        sizes = [row["rows"] for row in timed]
        axes[0].plot(sizes, [row[f"{name}_ms"] for row in timed], "o-", label=label)
        axes[1].plot(sizes, [row["memory_mib"][name] for row in timed], "o-", label=label)
    axes[0].set(title="info_nce, forward and backward, D = 128", ylabel="ms")
    axes[1].set(title="memory beside inputs and gradients", ylabel="MiB")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="rows N (with N keys)")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    operators = sorted({case.op for case in contrast.full_table()})
    parser.add_argument("--table", default="full", choices=contrast.TABLES)
    parser.add_argument("--op", choices=operators, help="only the rows of this operator")
    parser.add_argument("--rows", type=int, help="only info_nce of this many rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="to time a row for, about")
    parser.add_argument("--rounds", type=int, help="timed calls of a row, instead of --seconds")
    parser.add_argument(
        "--largest-table",
        type=float,
        default=contrast.LARGEST_TABLE,
        help="in GiB, of the baselines",
    )
    parser.add_argument("--keep-memory", action="store_true", help="reuse freed memory")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json", type=Path, help="file to write, after every row")
    parser.add_argument("--plot", type=Path, help="image of info_nce's rows to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    if options.keep_memory:
        measure.keep_freed_memory()
    rows = []
    cases = contrast.TABLES[options.table]()
    if options.rows:
        cases = [contrast.Case("info_nce", 1, options.rows, 128)]
    for case in cases:
        if options.op in (None, case.op):
            rows.append(benchmark(case, options))
            print_row(rows[-1])
            measure.write_json(options.json, rows)
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
