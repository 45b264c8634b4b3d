"""One training step of CLSD (forward, losses, backward, Adam) against plain PyTorch.

    python benchmarks/step.py [--json step.json] [--batch 4] [--patch 48] ...

Every configuration has its own copy of the same weights, its own ``torch.optim.Adam`` (fused, the
fastest there is) and the same batches; the baselines are `plain.CLSD`. ``ours`` is
`clsd_fast.CLSD` in the faster memory format.

Before anything is timed, our losses and all parameter gradients are held against the plain model
in float64: ``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the program
ends with status 1.

With ``--dtype bf16`` forward and losses run under bfloat16 autocast, ours and theirs; ours in
float32 is timed beside them.

``--breakdown`` times three methods instead, each as ours and in plain PyTorch: the student alone,
with heads under deep supervision (``ds``), and with the contrastive loss (``clsd``). The last two
differ by the cost of the contrastive term.

``peak_memory_mib`` is the growth of memory over three steps, gradients and Adam's state included,
weights not. Each configuration is measured in a process of its own; compilation is not counted,
nor what the C library keeps of freed memory.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from cases import step
from cases.step import COMPILED, EAGER, METHODS, OURS, OURS_FLOAT32, Trainer

NUM_MEMORY_STEPS = 3
TINY_PATCH = 8


def peak_memory_mib(name: str, case: step.Case, threads: int) -> float | None:
    """Growth of memory over three steps. To be run in a new process.

    A step before them loads the code. It is on tiny images, so that the buffers which a library
    keeps from step to step are counted; only compiled code is specific to the size of the images.
    """
    torch.set_num_threads(threads)
    measure.return_freed_memory()
    trainer = Trainer(name, case)
    if name not in COMPILED:
        trainer.load(case._replace(patch=TINY_PATCH))
    trainer.step(0)
    trainer.load(case)
    trainer.reset_optimizer()
    return measure.peak_growth_mib(
        lambda: [trainer.step(index) for index in range(NUM_MEMORY_STEPS)],
        torch.device(case.device),
    )


def losses_of(trainer: Trainer) -> dict[str, dict[str, float]]:
    """The losses of the first and the last step."""
    steps = {"first": trainer.history[0], "last": trainer.history[-1]}
    return {at: {name: loss.item() for name, loss in step.items()} for at, step in steps.items()}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    case = step.chosen(options)
    device = torch.device(case.device)
    names = case.names(step.MODE, options.compile)
    trainers = {name: Trainer(name, case) for name in names}
    figure = step.Contest(case).check({name: trainers[name].results for name in OURS})
    times = measure.interleave({n: t.step for n, t in trainers.items()}, device, options.rounds)
    result = measure.summary(times)
    memory = {
        name: measure.in_new_process(peak_memory_mib, name, case, options.threads) for name in names
    }
    losses = {name: losses_of(trainer) for name, trainer in trainers.items()}
    unsettled = ("json", "device", "breakdown")
    chosen = {**case._asdict(), **vars(options)}
    settings = {key: value for key, value in chosen.items() if key not in unsettled}
    return {
        **{f"{name}_ms": None for name in COMPILED},  # unless measured
        **result,
        "peak_memory_mib": measure.with_ours(memory, result["ours_layout"]),
        "losses": measure.with_ours(losses, result["ours_layout"]),
        "correctness": figure,
        "settings": {**settings, "taps": case.taps},
        **measure.environment(device),
    }


def breakdown(options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of a step of each method, of us and of plain PyTorch.

    Each in the faster of its two memory formats; ``contrastive_share`` is what the contrastive loss
    adds to a step with deep supervision.
    """
    device = torch.device(options.device)
    trainers = {}
    for method in METHODS:
        case = step.chosen(options)._replace(method=method)
        trainers |= {(name, method): Trainer(name, case) for name in (*OURS, *EAGER)}
    calls = {key: trainer.step for key, trainer in trainers.items()}
    times = measure.interleave(calls, device, options.rounds)
    medians = {key: measure.timing(values).median for key, values in times.items()}
    result = {}
    for side, names in (("ours", OURS), ("eager", EAGER)):
        name = min(names, key=lambda name: medians[name, "clsd"])
        steps = {method: medians[name, method] for method in METHODS}
        share = steps["clsd"] / steps["ds"] - 1
        result[side] = {"configuration": name, "ms": steps, "contrastive_share": share}
    return {**result, "contrast": options.contrast, **measure.environment(device)}


def print_breakdown(result: dict[str, Any]) -> None:
    print(f"{result['device']}, {result['threads']} threads, torch {result['torch']}")
    print("".join(f"{method:>10}" for method in METHODS) + f" ms, {result['contrast']} adds")
    for side in ("ours", "eager"):
        row = result[side]
        steps = "".join(f"{row['ms'][method]:10.2f}" for method in METHODS)
        print(f"{steps}    {100 * row['contrastive_share']:+.1f} % to ds   {row['configuration']}")


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['device']}, {result['threads']} threads, torch {result['torch']}")
    print(f"errors {result['correctness']:.2f} times the bound (limit {measure.LIMIT:g})")
    print(f"{'':22}{'median':>9}{'p20':>9}{'p80':>9} ms{'peak':>9} MiB{'loss':>9} to")
    for name in (*OURS, OURS_FLOAT32, *EAGER, *COMPILED):
        if result.get(f"{name}_ms") is None:
            continue
        median, p20, p80 = result[f"{name}_ms"], result["p20_ms"][name], result["p80_ms"][name]
        memory = result["peak_memory_mib"][name]
        peak = "?" if memory is None else f"{memory:.1f}"
        first, last = (result["losses"][name][at]["total"] for at in ("first", "last"))
        row = f"{name:22}{median:9.2f}{p20:9.2f}{p80:9.2f}   {peak:>9}    {first:9.4f} {last:.4f}"
        print(row)
    print(
        f"ours is {result['ratio_vs_eager']:.2f} times as fast as eager, "
        f"{result['ratio_vs_best']:.2f} times as fast as {result['best_baseline']}"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    step.add_arguments(parser, step.Case())
    dtypes = ("float32", "bf16")
    parser.add_argument("--dtype", default=dtypes[0], choices=dtypes, help="bf16: by autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of a configuration")
    parser.add_argument("--breakdown", action="store_true", help="time the parts of the method")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    if not 1 <= options.heads < options.blocks:
        parser.error(f"expected heads in 1..{options.blocks - 1}, got {options.heads}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    measure.keep_freed_memory()
    result = (breakdown if options.breakdown else benchmark)(options)
    measure.write_json(options.json, result)
    (print_breakdown if options.breakdown else print_table)(result)


if __name__ == "__main__":
    main()
