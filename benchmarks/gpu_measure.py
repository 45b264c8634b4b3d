"""What the benchmarks on a GPU share: its ceilings, floors, CUDA graphs and rows."""

import os
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import measure
import torch
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[int], object]

#: An implementation of this suffix is replayed from a CUDA graph; on a CPU there is none.
GRAPH = "_graph"
#: Larger than any cache, small enough for every GPU.
COPIED_BYTES = 2**30
PRODUCT_SIZE = 8192
#: Of an implementation, before it is timed: PyTorch's own CUDA graphs are recorded in the second.
FIRST_CALLS = 3


class Ceilings(NamedTuple):
    """What the device does at best, measured by PyTorch's own matrix product and copy."""

    tflops: float
    terabytes_per_second: float


def ceilings(device: torch.device, product_size: int, copied_bytes: int) -> Ceilings:
    a = torch.randn(product_size, product_size, device=device).to(torch.bfloat16)
    source = torch.randn(copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda index: a @ a, "copy": lambda index: target.copy_(source)}
    times = measure.interleave(calls, device, rounds=10)
    product, copy = (measure.timing(times[name]).median for name in calls)
    return Ceilings(2 * product_size**3 / product / 1e9, 2 * copied_bytes / copy / 1e9)


def floor_us(flops: int, num_bytes: int, ceiling: Ceilings) -> float:
    """Least microseconds for so many operations and bytes of memory."""
    return max(flops / ceiling.tflops / 1e6, num_bytes / ceiling.terabytes_per_second / 1e6)


def flops_of(call: Call) -> int:
    """Operations of matrix products and convolutions, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        call(0)
    return counter.get_total_flops()


def rotations(num_bytes: int, device: torch.device) -> int:
    """Sets of inputs that a call rotates over, so that none is still in the L2 cache.

    In a training step a layer's input was written a moment ago and may be; but the floors are
    those of memory, and this way every implementation meets the same.
    """
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(-(-2 * cache // num_bytes), 2), 32)


def repeated(call: Call, count: int) -> Call:
    def run(index: int) -> None:
        for number in range(count):
            call(number)

    return run


def captured(call: Call, count: int = 1) -> Call:
    """The calls 0 to count - 1 as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles kernels, loads them and chooses cuDNN's algorithms
            call(0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        repeated(call, count)(0)
    return lambda index: graph.replay()


def first_calls(
    names: Sequence[str], make: Callable[[str], Call], device: torch.device
) -> tuple[dict[str, Call], list[dict[str, Any]]]:
    """The implementations that work, by name, and a row for each that does not."""
    calls, failures = {}, []
    for name in names:
        try:
            call = make(name)
            for index in range(FIRST_CALLS):
                call(index)
            measure.synchronize(device)
            calls[name] = call
        except Exception as error:  # whatever it is, the others are timed
            failures.append({"implementation": name, "error": f"{name}: {described(error)}"})
    return calls, failures


def described(error: BaseException) -> str:
    """One line for the report; where it comes from goes to stderr."""
    traceback.print_exception(error)
    return " ".join(traceback.format_exception_only(error)[-1].split())


def time_calls(
    calls: Mapping[str, Call], device: torch.device, seconds: float, count: int
) -> list[dict[str, Any]]:
    """A row for each implementation: microseconds of one of the `count` calls in it.

    The GPU is waited for before and after every block of calls of measure.BLOCK_MS, which takes
    some 20 us of it; blocks are interleaved.
    """
    if not calls:
        return []
    times = measure.interleave(calls, device, seconds=seconds)
    rows = []
    for name, values in times.items():
        timing = measure.timing([1000 * value / count for value in values])
        rows.append(
            {"implementation": name, "us": timing.median, "p20_us": timing.p20}
            | {"p80_us": timing.p80, "rounds": len(values)}
        )
    ours = min((r["us"] for r in rows if r["implementation"].startswith("ours")), default=None)
    return [{**row, "times_ours": ours and row["us"] / ours} for row in rows]


def environment(device: torch.device) -> dict[str, Any]:
    """`measure.environment`, and what a figure of a GPU depends on beside it."""
    return {
        **measure.environment(device),
        **({"commit": os.environ["COMMIT"]} if "COMMIT" in os.environ else {}),
        "driver": driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return output.splitlines()[0].strip()
    return "unknown"
