"""Rounding of the composed tail against that of the layers in plain PyTorch.

    python benchmarks/tail_accuracy.py [--cases 20]

For each scale and dtype: the root mean square of the errors over random tails, of the output and
each gradient, as a multiple of plain PyTorch's in the same dtype; in brackets, the worst ratio of
the largest errors of a case. The reference is plain PyTorch in float64 on the same numbers.
"""

import argparse
import random

import torch
from cases import images
from cases.contest import FORWARD_BACKWARD

import clsd_fast


def errors(scale: int, dtype: torch.dtype, seed: int) -> list[list[torch.Tensor]]:
    """Ours and theirs of the output and each gradient, for one random tail."""
    choose = random.Random(seed)
    channels = choose.choice((16, 32, 64))
    height, width = choose.randint(1, 30), choose.randint(1, 30)
    shape = (choose.randint(1, 3), channels, height, width)
    case = images.Case("upsample_tail", (scale, channels), shape)
    tail = images.Contest(case, FORWARD_BACKWARD, dtype, seed)
    reference, theirs = tail.expected
    ours = tail.contender("ours_contiguous").results()
    return [
        [(result.double() - exact).flatten() for result in pair]
        for *pair, exact in zip(ours, theirs, reference, strict=True)
    ]


def result_names(count: int) -> list[str]:
    """Of output and gradients: of x, and of weight and bias of each stage and the last layer."""
    stages = range(1, (count - 4) // 2 + 1)
    ups = [f"{name} {stage}" for stage in stages for name in ("weight", "bias")]
    return ["output", "x", *ups, "last weight", "last bias"]


def compare(scale: int, dtype: torch.dtype, cases: int) -> dict[str, tuple[float, float]]:
    """For each result the ratio of the root mean squares and the worst ratio of the largest."""
    results = [errors(scale, dtype, seed) for seed in range(cases)]
    ratios = {}
    for index, name in enumerate(result_names(len(results[0]))):
        pairs = [case[index] for case in results]
        # Each case in units of plain PyTorch's error, so that none outweighs the others.
        squares = [(ours.norm() / theirs.norm()) ** 2 for ours, theirs in pairs if theirs.any()]
        largest = [(ours.abs().max(), theirs.abs().max()) for ours, theirs in pairs]
        worst = max((ours / theirs).item() for ours, theirs in largest if theirs)
        ratios[name] = torch.stack(squares).mean().sqrt().item(), worst
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    cases = parser.parse_args().cases
    clsd_fast.use_backend("native")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for scale in (2, 3, 4):
            ratios = compare(scale, dtype, cases)
            line = ", ".join(f"{name} {r:.2f} ({worst:.2f})" for name, (r, worst) in ratios.items())
            print(f"x{scale} {str(dtype).removeprefix('torch.')}: {line}", flush=True)


if __name__ == "__main__":
    main()
