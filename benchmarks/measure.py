"""What the benchmarks share: the correctness gate, interleaved timing, peak memory, reports."""

import ctypes
import gc
import json
import math
import multiprocessing
import platform
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import clsd_fast
from clsd_fast.backend import implementation

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

#: Largest `error_over_bound` that is timed. Winograd's convolution rounds up to 5 times as coarsely
#: as a direct one (WINOGRAD_FACTOR of tools/tolerance.py); a wrong kernel is off by thousands.
LIMIT = 5.0

#: Of a gradient's norm: where the input of a ReLU is next to zero, it opens in one right result and
#: not in another. With rounding errors of 1e-6, one element in a million of a map does so, which
#: is 1e-3 of its norm. Values, which are continuous, have no such share.
RELU_SHARE = 5e-4

#: Calls before the first timed one: the first compiles, the second has its memory in place.
WARM_UP = 2

#: Shorter calls are repeated for this long and their mean taken, as ``timeit`` and
#: ``torch.utils.benchmark`` do: alone between others they would be timed with cold caches, at up to
#: twice their time, most of it the same for everybody.
BLOCK_MS = 5.0

MIB = 2**20


class Timing(NamedTuple):
    """Milliseconds of a call."""

    median: float
    p20: float
    p80: float


def layout_of(name: str) -> str:
    """The memory format that an implementation's name ends with, contiguous if none."""
    return "channels_last" if name.endswith("channels_last") else "contiguous"


def error_over_bound(
    ours: Iterable[Tensor],
    reference: Iterable[Tensor],
    theirs: Iterable[Tensor],
    dtype: torch.dtype = torch.float32,
) -> float:
    """The gate's figure: the worst error of our results in units of what dtype loses anyway.

    That is, over all results, the largest ::

        |ours - reference| / (2 |theirs - reference| + (2 roundoff + share) |reference|)

    with ``reference`` plain PyTorch in float64 and ``theirs`` in dtype. It is the rule of
    tools/tolerance.py in the Euclidean norm: the largest single error of a deep network is a
    matter of luck. The first result is the value, with the share 0; the others are gradients, with
    RELU_SHARE.
    """
    worst = [0.0]
    share = 0.0
    for a, r, b in zip(ours, reference, theirs, strict=True):
        error, their_error = ((t.double() - r).norm().item() for t in (a, b))
        bound = 2 * their_error + (torch.finfo(dtype).eps + share) * r.norm().item()
        share = RELU_SHARE
        # A gradient that is zero has the bound zero; NaN is no zero and stays NaN.
        worst.append(error / bound if error and bound else error)
    return torch.tensor(worst).max().item()  # unlike the built-in max, this keeps a NaN


def gate(name: str, figure: float, limit: float = LIMIT) -> None:
    """End the program unless the results are right: a wrong result has no speed."""
    if not figure <= limit:
        raise SystemExit(
            f"{name}: expected errors of at most {limit:g} times the bound, got {figure:.3g}; "
            "nothing was timed"
        )


def interleave(
    calls: Mapping[str, Callable[[int], object]],
    device: torch.device,
    rounds: int | None = None,
    seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Milliseconds of every call in each of many rounds, after a warm-up.

    A round times every implementation once, so that a slow minute of the machine is everybody's,
    and in a new order, so that nobody always follows the same other one. All have the same number
    of calls in a round: one, or as many as take the fastest BLOCK_MS.

    Args:
        calls: implementations by name; they get the number of the call, to rotate their inputs.
        device: waited for before and after each call.
        rounds: how many, or None for as many as fit into ``seconds``, within 5 and 200.
        seconds: only for ``rounds=None``.
    """
    trim_memory()
    for index in range(WARM_UP):
        durations = [milliseconds(call, range(index, index + 1), device) for call in calls.values()]
    block = max(1, math.ceil(BLOCK_MS / min(durations)))
    if rounds is None:
        rounds = min(max(int(1000 * seconds / (block * sum(durations))), 5), 200)
    times = {name: [] for name in calls}
    order = random.Random(0)
    for start in range(WARM_UP, WARM_UP + rounds * block, block):
        for name in order.sample(list(calls), len(calls)):
            times[name].append(milliseconds(calls[name], range(start, start + block), device))
    return times


def milliseconds(call: Callable[[int], object], indices: range, device: torch.device) -> float:
    """The mean of one call for each index."""
    synchronize(device)
    start = time.perf_counter()
    for index in indices:
        call(index)
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / len(indices)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timing(times: list[float]) -> Timing:
    if len(times) < 2:
        return Timing(times[0], times[0], times[0])
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), fifths[0], fifths[-1])


def summary(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """`compare` with ``ours`` the faster one of ``ours_contiguous`` and ``ours_channels_last``."""
    medians = {name: timing(values).median for name, values in times.items()}
    layout = min(LAYOUTS, key=lambda layout: medians[f"ours_{layout}"])
    return {**compare(with_ours(times, layout)), "ours_layout": layout}


def compare(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians as ``<name>_ms``, quantiles, and how many times as fast ``ours`` is.

    Every name that does not start with ``ours`` is a baseline; there may be none.
    """
    timings = {name: timing(values) for name, values in times.items()}
    baselines = {n: t.median for n, t in timings.items() if not n.startswith("ours")}
    best = min(baselines, key=baselines.get, default=None)
    ours = timings["ours"].median
    return {
        **{f"{name}_ms": t.median for name, t in timings.items()},
        "best_baseline": best,
        "ratio_vs_eager": baselines["eager"] / ours if "eager" in baselines else None,
        "ratio_vs_best": baselines[best] / ours if best else None,
        "p20_ms": {name: t.p20 for name, t in timings.items()},
        "p80_ms": {name: t.p80 for name, t in timings.items()},
        "rounds": len(times["ours"]),
    }


def with_ours(values: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The values of all implementations, and under ``ours`` those of our better layout."""
    return {"ours": values[f"ours_{layout}"], **values}


def in_new_process(function: Callable, *args: object) -> Any:
    """``function(*args)`` in a process that has run nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def set_malloc(**options: int) -> None:
    """Set options of glibc's malloc for this process; another C library is left as it is."""
    parameters = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}  # malloc.h
    with suppress(AttributeError, OSError):
        for name, value in options.items():
            ctypes.CDLL(None).mallopt(parameters[name], value)


def keep_freed_memory() -> None:
    """Let this process reuse freed memory and not return it to the system, for timing.

    By default a large buffer may come from the system every time, page by page: whether one does
    depends on what was allocated before it, and costs a 4x64x48x48 map as much as its convolution.
    It is what PyTorch's tuning guide advises another malloc for. All implementations profit.
    """
    set_malloc(mmap_max=0, trim_threshold=2**31 - 1)


def prepare(threads: int) -> None:
    """What a process does before it is timed."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def return_freed_memory() -> None:
    """Let this process map every large buffer by itself and return it when freed, for counting.

    By default malloc keeps freed memory in pieces that later buffers may or may not fit into: the
    resident memory of one program differs by 15 MiB from run to run.
    """
    set_malloc(mmap_threshold=2**16)


def trim_memory() -> None:
    """Return freed memory to the system once."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def peak_growth_mib(function: Callable[[], object], device: torch.device) -> float | None:
    """How far ``function()`` raises the memory in use above what it was before, at its peak.

    On a GPU this is the memory of PyTorch's allocator; on a CPU the process's resident memory,
    which counts every library's own buffers too. None where the system does not tell.
    """
    trim_memory()  # what the process holds would be reused without growth
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    except OSError:
        return None
    before = resident_mib("VmRSS")
    function()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the benchmark's own options."""
    tensor = torch.empty(0, device=device)
    kernels = {implementation(op, tensor) for op in clsd_fast.ops.__all__}
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "kernels": " and ".join(sorted(kernels)),
        "torch": torch.__version__,
        "clsd_fast": clsd_fast.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def commit() -> str:
    """The sources' commit, with ``-dirty`` if they differ from it."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        output = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return output.strip()


def write_json(path: Path | None, content: object) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")
