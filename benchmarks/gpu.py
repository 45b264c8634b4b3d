"""Operators and training steps on an NVIDIA GPU, against PyTorch: `gpu.sh` builds and calls this.

    python benchmarks/gpu.py [--budget 400] [--only TEXT] [--output benchmarks/results]

Everything is in bfloat16 (the contrastive operators alone in float32) and channels_last. The
baselines, with cuDNN's own search for its fastest algorithms (``cudnn.benchmark``):

    cudnn            the operator in plain PyTorch, on 16-bit tensors, that is cuDNN
    triton           our Triton kernels of a convolution, which serve where native ones do not
    eager            the training step in plain PyTorch under autocast
    compile          torch.compile of that
    max_autotune     torch.compile(mode="max-autotune") of that
    *_graph          replayed from a CUDA graph, Adam included in the step; there, max_autotune has
                     PyTorch's own graphs

Before a number there is a check: results and gradients are held against float64 in the Euclidean
norm (`measure.error_over_bound`), operators at the tolerance rule's own bound, the step at
`measure.LIMIT` times it; what fails is not timed. Times are medians of blocks of calls, everything
in an item interleaved, our kernels again in each: ``times_ours`` compares within the item. Inputs
of operators rotate over twice the L2 cache.

``floor_us`` is the larger one of FLOPs over what a matrix product of 8192 reaches on this device,
and of bytes over what a copy of 1 GiB reaches, both measured at the start. Bytes are those of all
operands and results, once each; the floor of a step counts FLOPs alone, and that of the tail those
of the composed map.

Items run in processes of their own, most wanted first and the baselines that compile for minutes
last; what does not fit into the budget is named in the report. The report is gpu.json and gpu.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpu_measure
import gpu_ops
import gpu_report
import gpu_step
import measure
import torch
from cases import step

import clsd_fast

HEAD_BLOCKS = (1, 5)
COMPILED = ("compile", "compile_graph")
TRITON = "triton"
CONVOLUTIONS = ("conv3x3", "residual_block", "pixel_shuffle_upsample")
#: torch.compile's modes under our own CUDA graph.
MODES = {"compile": "default", "max_autotune": "max-autotune-no-cudagraphs"}
#: The paper's training step.
STEP = step.Case(scale=2, batch=16, patch=48, dtype="bf16")
SECONDS = 0.5
STEP_SECONDS = 3.0
#: An item that compiles nothing and takes longer has a kernel that does not end.
LONGEST_SECONDS = 120.0

Write = Callable[[dict[str, Any]], None]


class ItemError(Exception):
    """An item's process ended with an error; the text is the last line that it wrote."""


class Item(NamedTuple):
    """Something to time in one process: operators, or a step, against some baselines."""

    what: str
    baselines: tuple[str, ...]

    @property
    def name(self) -> str:
        against = f" against {', '.join(self.baselines)}" if self.baselines else ""
        return self.what + against

    @property
    def compiles(self) -> bool:
        return any(name.removesuffix(gpu_measure.GRAPH) in MODES for name in self.baselines)


def items() -> list[Item]:
    """Most wanted first."""
    operators = list(gpu_ops.table())
    steps = [f"step {blocks}" for blocks in HEAD_BLOCKS]
    return [
        Item("ceilings", ()),
        *(Item(op, ("cudnn", "cudnn_graph")) for op in operators),
        *(Item(op, (TRITON, TRITON + gpu_measure.GRAPH)) for op in CONVOLUTIONS),
        *(Item(what, ("eager", "eager_graph")) for what in steps),
        *(Item(what, names) for what in steps for names in (COMPILED, ("max_autotune",))),
        *(Item(op, (f"{name}_graph",)) for name in MODES for op in operators),
    ]


def runnable(names: Sequence[str], device: torch.device) -> list[str]:
    """Those that the device has: CUDA graphs and Triton are a GPU's."""
    if device.type == "cuda":
        return list(names)
    return [n for n in names if n != TRITON and not n.endswith(gpu_measure.GRAPH)]


def measure_item(item: Item, options: argparse.Namespace, write: Write) -> None:
    """Write the rows of an item. In a process of its own."""
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    write({"environment": gpu_measure.environment(device)})
    if item.what == "ceilings":
        found = gpu_measure.ceilings(device, options.product_size, options.copied_bytes)
        write({"ceilings": found._asdict()})
    elif item.what.startswith("step"):
        attempt(item.what, "step", write, lambda: step_rows(item, options))
    else:
        for problem in gpu_ops.table()[item.what]:
            for mode in problem.modes:
                rows = partial(op_rows, problem, mode, item.baselines, device, options.seconds)
                attempt(problem.title, mode, write, rows)


def attempt(problem: str, mode: str, write: Write, rows: Callable[[], list[dict]]) -> None:
    """Write the rows, or why there are none: the others are measured all the same."""
    try:
        found = rows()
    except (SystemExit, Exception) as error:
        found = [{"error": gpu_measure.described(error)}]
    for row in found:
        write({"row": {"problem": problem, "mode": mode, **row}})


def op_rows(
    problem: gpu_ops.Convolution | gpu_ops.Tail | gpu_ops.Contrast,
    mode: str,
    baselines: Sequence[str],
    device: torch.device,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row an implementation; none where torch.compile has nothing to compile."""
    compiles = any(name.removesuffix(gpu_measure.GRAPH) in MODES for name in baselines)
    if mode in ("dgrad", "wgrad") and compiles:
        return []
    operands = problem.operands(1, device)
    figure = op_correctness(problem, mode, operands)
    if TRITON in runnable(baselines, device):
        with clsd_fast.use_backend(TRITON):
            figure = max(figure, op_correctness(problem, mode, operands))
    measure.gate(f"{problem.title} {mode}", figure, problem.limit)
    num_bytes = bytes_of(problem.read(mode, operands))
    num_bytes += bytes_of(problem.call("ours", mode, operands)(0))
    count = gpu_measure.rotations(num_bytes, device)
    operands = problem.operands(count, device)
    names = runnable(["ours", "ours_graph", *baselines], device)
    make = partial(op_call, problem=problem, mode=mode, operands=operands, count=count)
    calls, failures = gpu_measure.first_calls(names, make, device)
    on_meta = problem.call("counted", mode, problem.operands(1, "meta"))
    facts = {
        "flops": gpu_measure.flops_of(on_meta),
        "bytes": num_bytes,
        "correctness": figure,
        "our_kernel": problem.kernel(operands),
    }
    rows = gpu_measure.time_calls(calls, device, seconds, count)
    return [*({**row, **facts} for row in rows), *failures]


def op_call(name: str, problem: Any, mode: str, operands: gpu_ops.Operands, count: int) -> Callable:
    """`count` calls of an implementation, one a set of operands."""
    kind = name.removesuffix(gpu_measure.GRAPH)
    compiled = kind in MODES
    wrap = partial(torch.compile, mode=MODES[kind], dynamic=False) if compiled else lambda f: f
    if compiled:
        torch.compiler.reset()  # else the versions pile up and the last are not compiled
    call = problem.call("ours" if kind in ("ours", TRITON) else "plain", mode, operands, wrap)
    if kind == TRITON:
        call = by_triton(call)
    graph = name.endswith(gpu_measure.GRAPH)
    return (gpu_measure.captured if graph else gpu_measure.repeated)(call, count)


def by_triton(call: Callable) -> Callable:
    def function(index: int) -> list[torch.Tensor]:
        with clsd_fast.use_backend(TRITON):
            return call(index)

    return function


def op_correctness(problem: Any, mode: str, operands: gpu_ops.Operands) -> float:
    exact = problem.call("plain", mode, operands.first_in_double())(0)
    ours, theirs = (problem.call(side, mode, operands)(0) for side in ("ours", "plain"))
    return measure.error_over_bound(ours, exact, theirs, problem.dtype)


def bytes_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_rows(item: Item, options: argparse.Namespace) -> list[dict[str, Any]]:
    head_blocks = int(item.what.removeprefix("step "))
    case = options.step._replace(device=options.device, head_blocks=head_blocks)
    device = torch.device(options.device)
    figure = gpu_step.correctness(case)
    measure.gate(item.what, figure)
    names = runnable(["ours", "ours_graph", *item.baselines], device)
    trainers = gpu_step.Trainers(case)
    calls, failures = gpu_measure.first_calls(names, trainers.call, device)
    rows = gpu_measure.time_calls(calls, device, options.step_seconds, 1)
    kernels = measure.environment(device)["kernels"]
    facts = {"flops": gpu_step.flops(case), "bytes": 0, "correctness": figure}
    return [*({**row, **facts, "our_kernel": kernels} for row in rows), *failures]


def run_item(item: Item, options: argparse.Namespace, seconds: float, write: Write) -> str | None:
    """Measure an item in a new process; say why it is not complete, if it was stopped.

    A kernel that fails leaves its process without a GPU, and a compilation cannot be stopped.
    """
    limit = seconds if item.compiles else min(seconds, LONGEST_SECONDS)
    command = [sys.executable, __file__, "--item", str(items().index(item))]
    command += ["--device", options.device, "--seconds", str(options.seconds)]
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows"), Path(folder, "log")
        rows.touch()
        status = run_process([*command, "--rows", str(rows)], log, limit)
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        text = log.read_text().strip()
    for entry in found:
        write(entry)
    if status or any("error" in entry.get("row", {}) for entry in found):
        print(text, file=sys.stderr)
    if status is None and limit < seconds:
        raise ItemError(f"stopped after {limit:.0f} s, which it should not take")
    if status is None:
        return f"stopped when the budget was spent, after {limit:.0f} s"
    if status:
        raise ItemError(f"exit status {status}: {text.splitlines()[-1] if text else ''}")
    return None


def run_process(command: Sequence[str], log: Path, limit: float) -> int | None:
    """Its exit status, or None if it was stopped at the limit."""
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            return child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # with the compiler's workers
            child.wait()
    return None


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """All items that fit into the budget, as gpu_report takes them."""
    chosen = [item for item in items() if options.only in item.name]
    if not chosen:
        names = "\n".join(item.name for item in items())
        raise SystemExit(f"gpu.py --only: expected a part of one of these names:\n{names}")
    result = {"environment": None, "ceilings": None, "rows": [], "left_out": []}
    end = time.monotonic() + options.budget

    def write(item: Item, found: dict[str, Any]) -> None:
        if "row" in found:
            result["rows"].append({"item": item.name, **found["row"]})
        else:
            result.update(found)

    for item in chosen:
        left = end - time.monotonic()
        if left < options.least_seconds:
            entry = {"item": item.name, "reason": "the budget was spent", "failed": False}
            result["left_out"].append(entry)
            continue
        start, reason, failed = time.monotonic(), None, False
        try:
            reason = run_item(item, options, left, partial(write, item))
        except ItemError as error:
            reason, failed = str(error), True
        print(f"{item.name}: {reason or f'{time.monotonic() - start:.0f} s'}", flush=True)
        if reason is not None:
            entry = {"item": item.name, "reason": reason, "failed": failed}
            result["left_out"].append(entry)
        gpu_report.write(options.output, result)
    gpu_report.write(options.output, result)
    return result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=400, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to time an operator for")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="measure the items with this in their names")
    parser.add_argument("--item", type=int, help="measure only this one, in this process")
    parser.add_argument("--rows", type=Path, help="file for the rows of --item")
    parser.set_defaults(
        product_size=gpu_measure.PRODUCT_SIZE,
        copied_bytes=gpu_measure.COPIED_BYTES,
        step_seconds=STEP_SECONDS,
        least_seconds=20,
        step=STEP,
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.item is None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("gpu.py: expected a CUDA device, got none")
        result = run_all(options)
        print(gpu_report.markdown(result))
        failures = [row for row in result["rows"] if "error" in row]
        if failures or any(entry["failed"] for entry in result["left_out"]):
            raise SystemExit("gpu.py: expected every item to be timed, got errors; see the report")
        return
    with options.rows.open("a") as file:

        def write(row: dict[str, Any]) -> None:
            print(json.dumps(row), file=file, flush=True)

        measure_item(items()[options.item], options, write)


if __name__ == "__main__":
    main()
