"""Training with the tails composed and layer by layer: how far rounding drives the losses apart.

    python benchmarks/tail_training.py [--scale 2] [--steps 200] [--plot docs/tail.png]

Trains CLSD three times from the same weights on the same patches of photographs: with composed
tails, with layered ones, and, for what rounding does to training anyway, with layered ones and
PyTorch's convolutions throughout. Prints and plots the losses and how far each is from the layered.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import step
from torch import Tensor

import clsd_fast

#: Name, whether the tails are composed, and the backend.
RUNS = {
    "composed": (True, "auto"),
    "layered": (False, "auto"),
    "layered, by PyTorch": (False, "reference"),
}


def photographs() -> list[Tensor]:
    """Colour photographs [3, H, W] in 0..255."""
    from skimage import data

    images = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in images]


def make_batches(options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Pairs of low- and high-resolution patches, a batch for each step."""
    generator = torch.Generator().manual_seed(0)
    images, size = photographs(), options.scale * options.patch
    batches = []
    for _ in range(options.steps):
        patches = []
        for _ in range(options.batch):
            image = images[int(torch.randint(len(images), (), generator=generator))]
            top, left = (
                int(torch.randint(length - size, (), generator=generator))
                for length in image.shape[1:]
            )
            patches.append(image[:, top : top + size, left : left + size])
        hr = torch.stack(patches)
        lr = F.interpolate(hr, scale_factor=1 / options.scale, mode="bicubic", antialias=True)
        batches.append((lr.clamp(0, 255), hr))
    return batches


def train(
    options: argparse.Namespace, batches: list[tuple[Tensor, Tensor]], collapse: bool, backend: str
) -> list[float]:
    """The total loss of every step."""
    model = step.our_model(step.chosen(options), collapse)
    optimizer = torch.optim.Adam(model.parameters(), lr=step.LEARNING_RATE)
    losses = []
    with clsd_fast.use_backend(backend):
        for lr, hr in batches:
            loss = model(lr, hr).losses["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def plot(losses: dict[str, Tensor], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, values), style in zip(losses.items(), ("-", "--", ":"), strict=True):
        axes[0].plot(values, style, label=name)
        if name != "layered":
            axes[1].plot(deviation(values, losses), style, label=name)
    axes[0].set(title="loss", xlabel="step", yscale="log")
    axes[1].set(title="relative distance to the layered loss", xlabel="step", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def deviation(values: Tensor, losses: dict[str, Tensor]) -> Tensor:
    """Relative, and at least half a unit of the last digit, so that a logarithm has a value."""
    layered = losses["layered"]
    return ((values - layered).abs() / layered).clamp(min=2**-25)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    step.add_arguments(parser, step.Case(patch=24))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="image to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    batches = make_batches(options)
    losses = {name: torch.tensor(train(options, batches, *run)) for name, run in RUNS.items()}
    for name, values in losses.items():
        apart = deviation(values, losses)
        print(
            f"{name:20} loss {values[0]:.4f} to {values[-1]:.4f}; from the layered: first step "
            f"{apart[0]:.1e}, median {apart.median():.1e}, largest {apart.max():.1e}"
        )
    if options.plot is not None:
        plot(losses, options.plot)


if __name__ == "__main__":
    main()
