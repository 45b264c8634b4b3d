"""One training step of CLSD (forward, losses, backward, Adam) against plain PyTorch.

    python benchmarks/step.py [--json step.json] [--batch 4] [--patch 48] ...

Every configuration has its own copy of the same weights, its own ``torch.optim.Adam`` (fused, the
fastest there is) and the same batches; the baselines are `plain.CLSD`. ``ours`` is
`clsd_fast.CLSD` in the faster memory format.

Before anything is timed, our losses and all parameter gradients are held against the plain model
in float64: ``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the program
ends with status 1.

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
import plain
import torch
import torch.nn.functional as F
from torch import Tensor

import clsd_fast

OURS = ("ours_contiguous", "ours_channels_last")
EAGER = ("eager", "eager_channels_last")
COMPILED = ("compile", "compile_channels_last")
#: Weights of deep supervision and of the contrastive loss.
METHODS = {"student": (0.0, 0.0), "ds": (1.0, 0.0), "clsd": (1.0, 0.1)}
NUM_BATCHES = 4
NUM_MEMORY_STEPS = 3
TINY_PATCH = 8
LEARNING_RATE = 1e-4


class Trainer:
    """One configuration: a model, its optimizer and the batches, all in one memory format.

    Args:
        name: of the configuration, one of OURS, EAGER, COMPILED.
        options: of the command line.
        dtype: float32, or float64 for the reference.
    """

    def __init__(
        self, name: str, options: argparse.Namespace, dtype: torch.dtype = torch.float32
    ) -> None:
        layout = measure.LAYOUTS[measure.layout_of(name)]
        self.placement = {"device": options.device, "dtype": dtype, "memory_format": layout}
        model = our_model(options)
        if name not in OURS:
            weights = model.state_dict()
            model = plain_model(options)
            model.load_state_dict(weights)
        self.name = name
        self.model = model.to(**self.placement)
        # Not dynamic: the other configuration's strides are no reason to make these symbolic.
        compiled = name in COMPILED
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.history: list[dict[str, Tensor]] = []
        self.load(options)
        self.reset_optimizer()

    def load(self, options: argparse.Namespace) -> None:
        """Make the batches."""
        self.batches = [
            [image.to(**self.placement) for image in pair] for pair in make_batches(options)
        ]

    def reset_optimizer(self) -> None:
        """Drop gradients and the optimizer's state."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.optimizer.zero_grad()

    def losses(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        output = self.forward(lr, hr)
        return output.losses if self.name in OURS else output

    def step(self, index: int) -> None:
        """One training step on the batch of this number; its losses go to the history."""
        losses = self.losses(*self.batches[index % NUM_BATCHES])
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        self.history.append({name: loss.detach() for name, loss in losses.items()})

    def gradients(self) -> dict[str, Tensor]:
        """All losses of the first batch as one vector, then the gradient of every parameter."""
        torch.manual_seed(0)  # of patch_nce's positions
        losses = self.losses(*self.batches[0])
        self.optimizer.zero_grad()
        losses["total"].backward()
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.requires_grad}
        values = [losses[name].detach() for name in ("rec", "ds", "cl", "total")]
        return {"losses": torch.stack(values), **gradients}


def our_model(options: argparse.Namespace) -> clsd_fast.CLSD:
    """The model that every configuration has its weights from."""
    torch.manual_seed(0)
    student = clsd_fast.EDSR(options.scale, options.blocks, options.channels)
    ds_weight, contrast_weight = METHODS[options.method]
    return clsd_fast.CLSD(
        student,
        taps(options),
        options.head_blocks,
        options.contrast,
        ds_weight=ds_weight,
        contrast_weight=contrast_weight,
    )


def plain_model(options: argparse.Namespace) -> plain.CLSD:
    return plain.CLSD(
        options.scale,
        options.blocks,
        options.channels,
        taps(options),
        options.head_blocks,
        options.contrast,
        *METHODS[options.method],
    )


def taps(options: argparse.Namespace) -> list[int]:
    """Evenly spaced, none after the last block: 5, 10, 15 at the defaults."""
    return [(options.blocks - 1) * k // options.heads for k in range(1, options.heads + 1)]


def make_batches(options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Pairs of low- and high-resolution images in 0..255."""
    generator = torch.Generator().manual_seed(1)
    size = options.scale * options.patch
    pairs = []
    for _ in range(NUM_BATCHES):
        hr = 255 * torch.rand(options.batch, 3, size, size, generator=generator)
        pairs.append((F.avg_pool2d(hr, options.scale), hr))
    return pairs


def correctness(trainers: dict[str, Trainer], options: argparse.Namespace) -> float:
    """The larger `measure.error_over_bound` of our two memory formats."""
    reference = Trainer("eager", options, torch.float64).gradients()
    theirs = trainers["eager"].gradients()
    figures = []
    for name in OURS:
        ours = trainers[name].gradients()
        rows = [(ours[key], reference[key], theirs[key]) for key in reference]
        figures.append(measure.error_over_bound(*zip(*rows, strict=True)))
    return max(figures)


def peak_memory_mib(name: str, options: argparse.Namespace) -> float | None:
    """Growth of memory over three steps. To be run in a new process.

    A step before them loads the code. It is on tiny images, so that the buffers which a library
    keeps from step to step are counted; only compiled code is specific to the size of the images.
    """
    torch.set_num_threads(options.threads)
    measure.return_freed_memory()
    trainer = Trainer(name, options)
    if name not in COMPILED:
        trainer.load(argparse.Namespace(**{**vars(options), "patch": TINY_PATCH}))
    trainer.step(0)
    trainer.load(options)
    trainer.reset_optimizer()
    return measure.peak_growth_mib(
        lambda: [trainer.step(index) for index in range(NUM_MEMORY_STEPS)],
        torch.device(options.device),
    )


def losses_of(trainer: Trainer) -> dict[str, dict[str, float]]:
    """The losses of the first and the last step."""
    steps = {"first": trainer.history[0], "last": trainer.history[-1]}
    return {at: {name: loss.item() for name, loss in step.items()} for at, step in steps.items()}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    device = torch.device(options.device)
    names = OURS + EAGER + (COMPILED if options.compile else ())
    trainers = {name: Trainer(name, options) for name in names}
    figure = correctness(trainers, options)
    measure.gate("training step", figure)
    times = measure.interleave({n: t.step for n, t in trainers.items()}, device, options.rounds)
    result = measure.summary(times)
    memory = {n: measure.in_new_process(peak_memory_mib, n, options) for n in names}
    losses = {name: losses_of(trainer) for name, trainer in trainers.items()}
    unsettled = ("json", "device", "breakdown")
    settings = {key: value for key, value in vars(options).items() if key not in unsettled}
    return {
        **{f"{name}_ms": None for name in COMPILED},  # unless measured
        **result,
        "peak_memory_mib": measure.with_ours(memory, result["ours_layout"]),
        "losses": measure.with_ours(losses, result["ours_layout"]),
        "correctness": figure,
        "settings": {**settings, "taps": taps(options)},
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
        chosen = argparse.Namespace(**{**vars(options), "method": method})
        trainers |= {(name, method): Trainer(name, chosen) for name in (*OURS, *EAGER)}
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
    for name in (*OURS, *EAGER, *COMPILED):
        if result[f"{name}_ms"] is None:
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
    parser.add_argument("--scale", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=48, help="low-resolution pixels")
    parser.add_argument("--blocks", type=int, default=16, help="of the student")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-blocks", type=int, default=5)
    parser.add_argument("--contrast", default="info_nce", choices=clsd_fast.distill.CONTRASTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of a configuration")
    parser.add_argument("--breakdown", action="store_true", help="time the parts of the method")
    parser.set_defaults(method="clsd")
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
