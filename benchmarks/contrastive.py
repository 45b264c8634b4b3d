"""The contrastive operators, forward and backward, against plain PyTorch.

    python benchmarks/contrastive.py [--op info_nce | --rows 100000] [--json FILE] [--plot FILE.png]

One row an operator and shape. Before a row is timed its loss and gradients are held against plain
PyTorch in float64: ``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the
program ends with status 1. From CHECKED_ROWS on, the first of that many queries are checked.

The baselines are what a user would write: normalise, matrix product and cross-entropy, all heads in
one batch; broadcasting, or ``torch.cdist``, for distances; and ``torch.compile`` of the first. A
table of logits above ``--largest-table`` is not tried in plain PyTorch.

``memory_mib`` is the growth of memory beside inputs and gradients, each in a process of its own
that returns freed memory. Inputs change from call to call. Freed memory goes where the C library
puts it, as in a user's program: it returns tables of 32 MiB and more to the system each time, which
costs plain PyTorch half of its time at 4096 rows. ``--keep-memory`` times without that.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import measure
import plain
import torch
from torch import Tensor

import clsd_fast

CPU = torch.device("cpu")
NUM_INPUTS = 2
CHECKED_ROWS = 4096


class Case(NamedTuple):
    """An operator and its rows: `heads` batches of `rows` rows and keys of `features`."""

    op: str
    heads: int
    rows: int
    features: int
    metric: str | None = None


def table() -> list[Case]:
    """In-batch losses of all sizes, feature maps of [64, 48, 48] and tables of similarities."""
    info_nce = [(3, 16), (3, 64), (1, 256), (1, 1024), (1, 4096), (1, 16_384), (1, 32_768)]
    return [
        *(Case("info_nce", heads, rows, 128) for heads, rows in info_nce),
        Case("distance_ratio_loss", 1, 16, 64 * 48 * 48),
        *(
            Case("pairwise_similarity", 1, rows, 128, metric)
            for rows in (1024, 4096)
            for metric in ("cosine", "dot", "l1")
        ),
    ]


def plain_similarity(query: Tensor, key: Tensor, metric: str) -> Tensor:
    if metric == "l1":
        return torch.cdist(query, key, p=1)
    if metric == "cosine":
        query, key = (torch.nn.functional.normalize(rows, dim=-1) for rows in (query, key))
    return query @ key.mT


def plain_ratio(anchor: Tensor, positive: Tensor, distances: Callable | None = None) -> Tensor:
    if distances is None:
        table = (anchor.unsqueeze(-2) - positive.unsqueeze(-3)).abs().mean(-1)
    else:
        table = distances(anchor, positive) / anchor.shape[-1]
    own = table.diagonal(dim1=-2, dim2=-1)
    others = (table.sum(-1) - own) / (table.shape[-1] - 1)
    return (own / (others + plain.EPS)).mean()


def implementations(case: Case, compiled: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Functions of two batches of rows by name: ours and the baselines."""
    if case.op == "info_nce":
        ours = partial(clsd_fast.info_nce, temperature=plain.TEMPERATURE)
        functions = {"ours": ours, "eager": plain.info_nce}
    elif case.op == "distance_ratio_loss":
        cdist = partial(plain_ratio, distances=partial(torch.cdist, p=1))
        functions = {"ours": clsd_fast.distance_ratio_loss, "eager": plain_ratio, "cdist": cdist}
    else:
        ours = partial(clsd_fast.pairwise_similarity, metric=case.metric)
        functions = {"ours": ours, "eager": partial(plain_similarity, metric=case.metric)}
    if compiled:
        functions["compile"] = torch.compile(functions["eager"], dynamic=False)
    return functions


def make_rows(case: Case, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Pairs of leaves [heads, rows, features], or [rows, features] for one head."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.rows, case.features) if case.heads == 1 else case[1:4]
    return [
        [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
        for _ in range(NUM_INPUTS)
    ]


def make_call(
    function: Callable, inputs: list[list[Tensor]], case: Case
) -> Callable[[int], list[Tensor]]:
    """The value and both gradients of the n-th inputs."""
    grad = None
    if case.op == "pairwise_similarity":
        grad = torch.randn(case.rows, case.rows, generator=torch.Generator().manual_seed(1))
        grad = grad.to(inputs[0][0].dtype)

    def call(index: int) -> list[Tensor]:
        rows = inputs[index % NUM_INPUTS]
        for leaf in rows:
            leaf.grad = None
        value = function(*rows)
        value.backward(grad)
        return [value.detach(), *(leaf.grad for leaf in rows)]

    return call


def correctness(case: Case, functions: dict[str, Callable]) -> float:
    """`measure.error_over_bound`, of the first CHECKED_ROWS rows."""
    case = case._replace(rows=min(case.rows, CHECKED_ROWS))
    float32, float64 = make_rows(case), make_rows(case, torch.float64)
    names = (
        ("ours", "ours", float32),
        ("reference", "eager", float64),
        ("eager", "eager", float32),
    )
    results = {
        name: make_call(functions[function], rows, case)(0) for name, function, rows in names
    }
    return measure.error_over_bound(results["ours"], results["reference"], results["eager"])


def memory_mib(name: str, case: Case, options: argparse.Namespace) -> float | None:
    """Growth of memory over one call beside gradients. To be run in a new process."""
    torch.set_num_threads(options.threads)
    measure.return_freed_memory()
    functions = implementations(case, compiled=name == "compile")
    small = case._replace(rows=min(case.rows, 16), features=min(case.features, 128))
    make_call(functions[name], make_rows(small), small)(0)  # loads the code
    call = make_call(functions[name], make_rows(case), case)
    growth = measure.peak_growth_mib(lambda: call(0), CPU)
    gradients = 2 * 4 * case.heads * case.rows * case.features / measure.MIB
    return None if growth is None else growth - gradients


def benchmark(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a case."""
    table_gib = 4 * case.heads * case.rows**2 / 2**30
    functions = implementations(case, options.compile)
    figure = correctness(case, functions)
    measure.gate(title(case), figure)
    if table_gib > options.largest_table:
        functions = {"ours": functions["ours"]}
    inputs = make_rows(case)
    calls = {name: make_call(f, inputs, case) for name, f in functions.items()}
    times = measure.interleave(calls, CPU, options.rounds, options.seconds)
    memory = {name: measure.in_new_process(memory_mib, name, case, options) for name in functions}
    return {
        **case._asdict(),
        **{f"{name}_ms": None for name in ("eager", "compile")},  # unless measured
        **measure.compare(times),
        "memory_mib": memory,
        "keeps_memory": options.keep_memory,
        "correctness": figure,
        **measure.environment(CPU),
    }


def title(case: Case) -> str:
    metric = "" if case.metric is None else f" {case.metric}"
    return f"{case.op}{metric} {case.heads} x {case.rows} x {case.features}"


def print_row(row: dict[str, Any]) -> None:
    case = Case(*(row[field] for field in Case._fields))
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
        f"{title(case)}: {ratio} (errors {row['correctness']:.2f}); ms: {times}; MiB: {memory}",
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
    operators = sorted({case.op for case in table()})
    parser.add_argument("--op", choices=operators, help="only the rows of this operator")
    parser.add_argument("--rows", type=int, help="only info_nce of this many rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="to time a row for, about")
    parser.add_argument("--rounds", type=int, help="timed calls of a row, instead of --seconds")
    parser.add_argument("--largest-table", type=float, default=1.0, help="in GiB, of the baselines")
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
    cases = [Case("info_nce", 1, options.rows, 128)] if options.rows else table()
    for case in cases:
        if options.op in (None, case.op):
            rows.append(benchmark(case, options))
            print_row(rows[-1])
            measure.write_json(options.json, rows)
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
