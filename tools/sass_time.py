"""Predicts how long the CUDA kernels and a training step take on GPUs that are not there.

    python tools/sass_time.py [--json FILE] [--cards h100,a100] [--library _C_cuda.so]

It is a model, not a measurement. Every launch's machine code is run as far as control flow and
addresses go (`sass_run`), for the arguments of the launch, and what a block issues is replayed on a
multiprocessor (`sass_clock`, which has all constants and their sources). What launches a step of
CLSD has is found by running one (`sass_step`): x2, batch 16, 48x48, bfloat16, 3 heads of n blocks
and a convolution, Adam included. In a CUDA graph each launch is a node, NODE_US apart; PyTorch's
own operators take the time of their bytes.

A line of the first table is a launch of the step with n = 5, or of an operator beside it:

    calls     in the step with n = 5; 0 for what only another operator launches
    blocks    of the grid; held: by a multiprocessor at once; waves: how often they fill the card
    slots     instructions that a scheduler of the busiest multiprocessor issues
    a load    instructions of a warp for each 16 bytes that its lanes load
    loader    instructions of a thread for each 16 bytes of a convolution's input that it copies:
              all that their addresses and predicates depend on (`sass_loader`)
    tensor    share of the time that the card's tensor cores multiply
    us        predicted

Where ``benchmarks/gpu.py`` has measured on such a card, the second table has its times beside.
Needs nvcc, a C++ compiler, cuobjdump and Triton.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import native_build
import sass_clock
import sass_code
import sass_report
import sass_step
import triton_code
from emulation import Emulation, Gpu
from sass_clock import CARDS, Card, Prediction
from sass_code import Launch

RESULTS = native_build.ROOT / "benchmarks" / "results"
HEAD_BLOCKS = (5, 1)
#: Of a CUDA graph, from the end of a kernel to the start of the next (public microbenchmarks).
NODE_US = 1.3
#: Cycles of a kernel of PyTorch's that has next to nothing to do: assumed to be those of a load
#: from memory (LATENCY of `sass_clock`) and some arithmetic.
ATEN_CYCLES = 700
NOTE = "model, not measurement"


class Row(NamedTuple):
    """A launch, and how often the step with n = 5 has it."""

    kernel: str
    blocks: int
    calls: int
    prediction: Prediction


class Predictor:
    """Predictions for a card, each launch once."""

    def __init__(self, card: Card, library: Path) -> None:
        self.card = card
        self.kernels = sass_code.Binary(library, card.architecture)
        self.compiled = triton_code.compiler(card.architecture)
        self.once = sass_clock.predictor(card)

    def native(self, launch: Launch) -> Prediction:
        return self.once(self.kernels[launch.kernel], launch)

    def triton(self, call: triton_code.Call) -> Prediction:
        return self.once(*self.compiled(call))

    def aten_us(self, call: sass_step.Aten) -> float:
        bytes_per_cycle = sass_clock.L2_BYTES_PER_CYCLE * self.card.multiprocessors
        cycles = ATEN_CYCLES + call.num_bytes / bytes_per_cycle
        return cycles / (1000 * self.card.clock_ghz)

    def step_ms(self, step: sass_step.Step) -> float:
        times = [self.native(launch).us for launch in step.native]
        times += [self.triton(call).us for call in step.triton if call.programs]
        times += map(self.aten_us, step.aten)
        return (sum(times) + NODE_US * len(times)) / 1000

    def rows(self, step: sass_step.Step, others: Iterable[Launch]) -> list[Row]:
        """Of all different launches of a step and of others."""
        rows: dict[tuple, Row] = {}
        named = [(launch.kernel, launch, self.native(launch), 1) for launch in step.native]
        for call in (call for call in step.triton if call.programs):
            kernel, launch = self.compiled(call)
            named.append((kernel.name, launch, self.once(kernel, launch), 1))
        named += [(launch.kernel, launch, self.native(launch), 0) for launch in others]
        for name, launch, prediction, calls in named:
            key = (name, prediction)
            calls += rows[key].calls if key in rows else 0
            rows[key] = Row(name, launch.blocks, calls, prediction)
        return sorted(rows.values(), key=lambda row: (row.kernel, -row.calls))


def report(keys: Sequence[str], library: Path, emulation: Emulation) -> dict[str, Any]:
    """Everything that is printed and written, of the cards with these names."""
    result: dict[str, Any] = {"note": NOTE, "step_ms": {}, "launches": {}, "kernels": {}}
    result["operators_us"] = {}
    rows: dict[str, list[Row]] = {}
    for key in keys:
        card = CARDS[key]
        gpu = gpu_of(card)
        predictor = Predictor(card, library)
        steps = {n: sass_step.record(emulation, gpu, n) for n in HEAD_BLOCKS}
        for n, step in steps.items():
            result["step_ms"][f"{key}_n{n}"] = predictor.step_ms(step)
            result["launches"][f"n{n}"] = step.launches
        operators = sass_step.operators(emulation, gpu)
        others = [launch for launches in operators.values() for launch in launches]
        rows[key] = predictor.rows(steps[HEAD_BLOCKS[0]], others)
        result["kernels"][key] = slowest(rows[key])
        result["operators_us"][key] = {
            title: sum(predictor.native(launch).us for launch in launches)
            for title, launches in operators.items()
        }
        print(table(card, rows[key]), flush=True)
    return result


def gpu_of(card: Card) -> Gpu:
    """As the emulation is one: all before Hopper have the same kernels, of which shared memory
    decides."""
    capability = (9, 0) if card.architecture == "sm_90a" else (8, 0)
    return Gpu(capability, card.multiprocessors, card.shared_bytes - sass_clock.BLOCK_SHARED_BYTES)


def slowest(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Of each kernel the launch that takes longest, of those of the step if it has any; and the
    calls of all."""
    kernels: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row.calls > 0, row.prediction.us)):
        before = kernels.get(row.kernel, {"calls": 0})
        fields = row.prediction._asdict()
        kernels[row.kernel] = {
            "calls": before["calls"] + row.calls,
            "predicted_us": fields.pop("us"),
            **fields,
        }
    return kernels


def table(card: Card, rows: Sequence[Row]) -> str:
    width = max(len(row.kernel) for row in rows)
    lines = [f"{card.name} ({card.architecture}, {card.multiprocessors} multiprocessors): {NOTE}"]
    lines.append(
        f"{'kernel':{width}}  calls blocks  held waves   slots  a load  loader tensor      us"
    )
    for name, blocks, calls, p in rows:
        per_load = "-" if p.per_load is None else f"{p.per_load:.0f}"
        loader = p.loader_instructions_per_16_bytes
        loader = "-" if loader is None else f"{loader:.1f}"
        lines.append(
            f"{name:{width}} {calls:6} {blocks:6} {p.resident:5} {p.waves:5.2f} {p.issue_slots:7} "
            f"{per_load:>7} {loader:>7} {p.tensor_share:6.0%} {p.us:7.2f}"
        )
    return "\n".join([*lines, ""])


def measured(folder: Path, card: Card) -> dict[str, float]:
    """Microseconds by `sass_step.operators`' titles, and of the steps, of gpu.py on such a card."""
    times: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        rows = result.get("rows") if isinstance(result, dict) else None
        environment = result.get("environment") if isinstance(result, dict) else None
        if not rows or not environment or card.name not in environment["device"]:
            continue
        ours = [row for row in rows if row.get("implementation", "").startswith("ours")]
        for row in ours:  # a graph's, where there is one
            title = f"{row['problem']}, {row['mode']}"
            if title not in times or row["implementation"] == "ours_graph":
                times[title] = row["us"]
    return times


def comparison(result: dict[str, Any], folder: Path) -> str:
    """Steps and operators of every card, predicted and, where there is one, measured."""
    lines = [f"{'':52} predicted  measured us"]
    for key, operators in result["operators_us"].items():
        found = measured(folder, CARDS[key])
        steps = {f"step {n}, step": 1000 * result["step_ms"][f"{key}_n{n}"] for n in HEAD_BLOCKS}
        lines.append(f"{CARDS[key].name}, {NOTE}")
        for title, us in {**steps, **operators}.items():
            on_gpu = f"{found[title]:9.1f}" if title in found else "        -"
            lines.append(f"  {title:50} {us:9.1f} {on_gpu}")
    counts = ", ".join(f"{name} {count}" for name, count in result["launches"].items())
    return "\n".join([*lines, f"launches of a step: {counts}"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="a built _C_cuda.so, instead of building one")
    parser.add_argument("--cards", default=",".join(CARDS), help="some of %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gpu.py's reports")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    keys = options.cards.split(",")
    if unknown := [key for key in keys if key not in CARDS]:
        parser.error(f"expected --cards of {', '.join(CARDS)}, got {', '.join(unknown)}")
    if lacking := sass_report.missing():
        raise SystemExit(f"sass_time: expected {lacking}, got none")
    library = options.library or sass_report.build()
    emulation = Emulation(native_build.build_emulation())
    result = report(keys, library, emulation)
    print(comparison(result, options.results))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
