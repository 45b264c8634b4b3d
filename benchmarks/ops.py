"""Each image operator, and inference on a whole image, against plain PyTorch and oneDNN's fusion.

    python benchmarks/ops.py [--table tiny|quick|full|channels] [--op residual_block]
        [--dtype bfloat16] [--json ops.json]

One row an operator, shape and mode: ``forward`` (no gradient is recorded) or ``forward_backward``
(the gradients of the input and of every parameter). All implementations are modules with the same
weights. Before a row is timed its results are held against plain PyTorch in float64:
``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the program ends with
status 1. The baselines:

    eager                plain PyTorch, as in `plain`
    compile              torch.compile of that
    onednn               oneDNN's convolutions with ReLU and addition fused and weights packed
                         beforehand, which is what torch.compile makes of frozen weights
    *_channels_last      the same on channels_last input and weights
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from cases import contest, images

CPU = torch.device("cpu")


def benchmark(case: images.Case, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a case and mode."""
    dtype = getattr(torch, options.dtype)
    rivals = images.Contest(case, mode, dtype)
    names = case.names(mode, options.compile, dtype)
    contenders = {name: rivals.contender(name) for name in names}
    figure = rivals.check(contest.our_results(contenders))
    times = measure.interleave(contest.calls(contenders), CPU, options.rounds, options.seconds)
    return {
        **rivals.facts,
        **measure.summary(times),
        "dtype": options.dtype,
        "correctness": figure,
        **measure.environment(CPU),
    }


def print_row(row: dict[str, Any]) -> None:
    case = images.Case(row["op"], row["arguments"], row["shape"])
    times = "  ".join(
        f"{name.removesuffix('_ms')} {value:.3f}"
        for name, value in row.items()
        if name.endswith("_ms") and isinstance(value, float) and name != "ours_ms"
    )
    print(
        f"{case.title} {row['mode']}: {row['ratio_vs_eager']:.2f} times eager, "
        f"{row['ratio_vs_best']:.2f} times {row['best_baseline']} "
        f"(errors {row['correctness']:.2f}); ms: {times}",
        flush=True,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--table", default="quick", choices=images.TABLES)
    parser.add_argument("--op", choices=images.OURS, help="only the rows of this operator")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="to time a row for, about")
    parser.add_argument("--rounds", type=int, help="timed calls of a row, instead of --seconds")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json", type=Path, help="file to write, after every row")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    measure.prepare(options.threads)
    rows = []
    for case in images.TABLES[options.table]():
        if options.op not in (None, case.op):
            continue
        for mode in case.modes:
            rows.append(benchmark(case, mode, options))
            print_row(rows[-1])
            measure.write_json(options.json, rows)


if __name__ == "__main__":
    main()
