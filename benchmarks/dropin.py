"""One training step of networks as people have them, before and after `clsd_fast.accelerate`.

    python benchmarks/dropin.py [--only EDSR RCAN] [--json dropin.json] ...

Each network of benchmarks/zoo is timed as it is in PyTorch, in both memory formats, and
accelerated, in both; EDSR also against `clsd_fast.EDSR`. All have the same weights, the same batch
and their own fused Adam, and take turns. Before anything is timed, the accelerated network's output
and gradients are held against the plain one's in float64: above `measure.LIMIT` the program ends
with status 1.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO

import clsd_fast

LEARNING_RATE = 1e-4
#: How deep the networks are: as their authors train them, or as far as a CPU gets in a second.
SIZES: dict[str, dict[str, int]] = {
    "EDSR": {"blocks": 16},
    "BasicSREDSR": {"blocks": 16},
    "MSRResNet": {"blocks": 16},
    "KAIREDSR": {"blocks": 16},
    "RCAN": {"groups": 2, "blocks": 6},
    "CARN": {},
    "DRLN": {"blocks": 3},
    "RDN": {"blocks": 4},
    "RRDBNet": {"blocks": 2, "growth": 32},
    "RFDN": {},
    "VDSR": {"layers": 18},
    "Compact": {"layers": 16},
    "ArtCNN": {"layers": 8},
    "NinaSR": {"blocks": 10},
}


def make(name: str, options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    sizes = {key: 1 if options.shallow else size for key, size in SIZES[name].items()}
    if "growth" in sizes:
        sizes["growth"] = options.channels // 2
    return ZOO[name](scale=options.scale, channels=options.channels, **sizes)


def ours_for(plain: nn.Module, options: argparse.Namespace) -> clsd_fast.EDSR:
    """Our EDSR of the same weights."""
    blocks = len(plain.body) - 1
    scale = plain.body[0].res_scale
    student = clsd_fast.EDSR(options.scale, blocks, options.channels, scale, value_range=1.0)
    student.load_state_dict(plain.state_dict())
    return student


def results(model: nn.Module, lr: Tensor, hr: Tensor) -> list[Tensor]:
    """The loss, and the gradients of all parameters."""
    loss = F.l1_loss(model(lr), hr)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def step_of(model: nn.Module, lr: Tensor, hr: Tensor) -> Callable[[int], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(_: int) -> None:
        optimizer.zero_grad()
        F.l1_loss(model(lr), hr).backward()
        optimizer.step()

    return step


def benchmark(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network."""
    plain = make(name, options)
    lr = torch.rand(options.batch, 3, options.patch, options.patch)
    hr = torch.rand(options.batch, 3, *(options.scale * options.patch,) * 2)
    models = {"eager": plain, "ours": clsd_fast.accelerate(copy.deepcopy(plain))}
    if name == "EDSR":
        models["edsr"] = ours_for(plain, options)
    reference = results(copy.deepcopy(plain).double(), lr.double(), hr.double())
    theirs, found = (results(models[key], lr, hr) for key in ("eager", "ours"))
    figure = measure.error_over_bound(found, reference, theirs)
    measure.gate(name, figure)
    steps = {}
    for key, model in models.items():
        for layout, memory_format in measure.LAYOUTS.items():
            own = copy.deepcopy(model).to(memory_format=memory_format)
            pair = (image.contiguous(memory_format=memory_format) for image in (lr, hr))
            steps[f"{key}_{layout}"] = step_of(own, *pair)
    times = measure.interleave(steps, torch.device("cpu"), options.rounds)
    timings = {key: measure.timing(values) for key, values in times.items()}
    medians = {key: timing.median for key, timing in timings.items()}
    best = {key: min(medians[f"{key}_{layout}"] for layout in measure.LAYOUTS) for key in models}
    return {
        "network": name,
        "correctness": figure,
        "median_ms": medians,
        "p20_ms": {key: timing.p20 for key, timing in timings.items()},
        "p80_ms": {key: timing.p80 for key, timing in timings.items()},
        # Of a user who changes one line, and of the faster layout of each.
        "ratio_as_it_is": medians["eager_contiguous"] / medians["ours_contiguous"],
        "ratio_vs_best": best["eager"] / best["ours"],
        "share_of_our_edsr": best["ours"] / best["edsr"] if "edsr" in best else None,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    names = [f"{key}_{layout}" for key in ("eager", "ours", "edsr") for layout in measure.LAYOUTS]
    print(f"{'':12}" + "".join(f"{name:>21}" for name in names) + " ms   as it is, best")
    for row in rows:
        medians = row["median_ms"]
        columns = "".join(
            f"{medians[name]:21.2f}" if name in medians else f"{'':21}" for name in names
        )
        ratios = f"{row['ratio_as_it_is']:12.2f}{row['ratio_vs_best']:6.2f}"
        print(f"{row['network']:12}{columns}{ratios}")
        if row["share_of_our_edsr"]:
            print(f"{'':12}accelerated, {row['share_of_our_edsr']:.3f} of clsd_fast.EDSR's time")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ZOO, default=list(ZOO), metavar="NETWORK")
    parser.add_argument("--scale", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=48, help="low-resolution pixels")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--shallow", action="store_true", help="one block of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of a configuration")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    measure.prepare(options.threads)
    environment = measure.environment(torch.device("cpu"))
    print(f"{environment['device']}, {options.threads} threads, torch {environment['torch']}")
    rows = [benchmark(name, options) for name in options.only]
    print_table(rows)
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    measure.write_json(options.json, {"rows": rows, "settings": settings, **environment})


if __name__ == "__main__":
    main()
