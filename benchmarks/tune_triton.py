"""Finds the sizes of blocks of the Triton convolutions on the GPU at hand, and writes their table.

    python benchmarks/tune_triton.py [--seconds 0.05] [--output clsd_fast/triton/conv/table.py]

Every candidate is held against the first one's result, then timed: the forward of a convolution of
64 channels, batch 16, 48x48, and the gradient of its weight, 16-bit, TF32 and float32. The entries
of other architectures stay as they are. A candidate that does not compile, or does not fit the
GPU, is named and left out.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import clsd_fast
from clsd_fast.triton.conv import configurations, table
from clsd_fast.triton.conv.table import OTHERS, Sizes

SHAPE, OUTPUTS = (16, 64, 48, 48), 64
DTYPES = {"16-bit": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
BLOCKS = {
    "16-bit": ([(4, 16), (8, 16), (16, 16)], [32, 64], [64]),
    "tf32": ([(4, 8), (8, 8), (8, 16)], [32, 64], [64]),
    "float32": ([(4, 4), (4, 8), (8, 8)], [16, 32], [32, 64]),
}
TABLES = {"CONVOLVE": table.CONVOLVE, "WEIGHT_GRADIENT": table.WEIGHT_GRADIENT}


def candidates(arithmetic: str) -> Iterator[Sizes]:
    tiles, inputs, outputs = BLOCKS[arithmetic]
    for tile, c, k, warps, stages in itertools.product(tiles, inputs, outputs, (4, 8), (1, 2, 3)):
        yield (*tile, c, k, warps, stages)


def problem(name: str, arithmetic: str) -> Callable[[], Tensor]:
    """What is timed of a table: one call."""
    dtype = DTYPES[arithmetic]
    x = torch.randn(SHAPE, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(OUTPUTS, SHAPE[1], 3, 3, device="cuda") / 24
    ops = torch.ops.clsd_fast
    if name == "CONVOLVE":
        return lambda: ops.conv3x3(x, weight, None, None, 1.0, True)
    return lambda: ops.conv3x3_backward(x, x, weight, 1.0, False, True, False)[1]


def milliseconds(call: Callable[[], Tensor], seconds: float) -> float:
    """Median of single calls, for so long."""
    times: list[float] = []
    while sum(times) < 1000 * seconds or len(times) < 5:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def fastest(name: str, arithmetic: str, seconds: float) -> Sizes:
    """The candidate that takes least, each in the table in turn."""
    call = problem(name, arithmetic)
    entries = TABLES[name][configurations.architecture(torch.device("cuda"))]
    expected = call().double()
    times: dict[Sizes, float] = {}
    for sizes in candidates(arithmetic):
        entries[arithmetic] = sizes
        try:
            error = (call().double() - expected).norm() / expected.norm()
            if error > 0.02:
                raise RuntimeError(f"a relative error of {error:.3g}")
            times[sizes] = milliseconds(call, seconds)
        except Exception as failure:  # whatever the compiler or the driver raises
            print(f"{name} {arithmetic} {sizes}: left out: {str(failure).splitlines()[0]}")
    best = min(times, key=times.__getitem__)
    print(f"{name} {arithmetic}: {best}, {1000 * times[best]:.1f} us", flush=True)
    return best


def tune(seconds: float) -> None:
    """Set this architecture's entries of both tables."""
    architecture = configurations.architecture(torch.device("cuda"))
    for name, entries in TABLES.items():
        entries[architecture] = dict(entries.get(architecture, entries[OTHERS]))
        for arithmetic in BLOCKS:
            torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
            entries[architecture][arithmetic] = fastest(name, arithmetic, seconds)


def rendered() -> str:
    """The tables as the source of their module."""
    lines = [f'"""{table.__doc__}"""', "", "Sizes = tuple[int, int, int, int, int, int]", ""]
    lines += ["#: Every architecture that is not named.", f'OTHERS = "{OTHERS}"']
    for name, entries in TABLES.items():
        lines.append(f"{name}: dict[str, dict[str, Sizes]] = {{")
        for architecture, by_arithmetic in entries.items():
            lines.append(f'    "{architecture}": {{')
            lines += [f'        "{kind}": {sizes},' for kind, sizes in by_arithmetic.items()]
            lines.append("    },")
        lines.append("}")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.05, help="of each candidate")
    parser.add_argument("--output", type=Path, default=Path(table.__file__))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_triton: expected a GPU, got none")
    with clsd_fast.use_backend("triton"):
        tune(options.seconds)
    options.output.write_text(rendered())


if __name__ == "__main__":
    main()
