"""Rounding of the composed tail against that of the layers in plain PyTorch.

    PYTHONPATH=tests python benchmarks/tail_accuracy.py [--cases 20]

For each scale and dtype: the root mean square of the errors over random tails, of the output and
each gradient, as a multiple of plain PyTorch's in the same dtype; in brackets, the worst ratio of
the largest errors of a case. The reference is plain PyTorch in float64 on the same numbers.
"""

import argparse
import random

import torch
from support.tolerance import largest
from support.util import run_all
from test_upsample_tail import STAGES, collapsed, inputs, plain

import clsd_fast

NAMES = {1: ["x", "weight", "bias"], 2: ["x", "weight 1", "bias 1", "weight 2", "bias 2"]}


def errors(scale: int, dtype: torch.dtype, seed: int) -> list[list[torch.Tensor]]:
    """Ours and theirs of the output and each gradient, for one random tail."""
    choose = random.Random(seed)
    channels = choose.choice((16, 32, 64))
    height, width = choose.randint(1, 30), choose.randint(1, 30)
    shape = (choose.randint(1, 3), channels, height, width)
    tensors = inputs(scale, *shape, middle=choose.choice((16, 32, 64)), seed=seed)
    functions = [lambda *t, f=f: f(*t, scale=scale) for f in (collapsed, plain)]
    ours, reference, theirs = run_all(*functions, tensors, dtype, grad_seed=seed)
    return [
        [(result.double() - exact).flatten() for result in pair]
        for *pair, exact in zip(ours, theirs, reference, strict=True)
    ]


def compare(scale: int, dtype: torch.dtype, cases: int) -> dict[str, tuple[float, float]]:
    """For each result the ratio of the root mean squares and the worst ratio of the largest."""
    results = [errors(scale, dtype, seed) for seed in range(cases)]
    names = ["output", *NAMES[len(STAGES[scale])], "last weight", "last bias"]
    ratios = {}
    for index, name in enumerate(names):
        pairs = [case[index] for case in results]
        # Each case in units of plain PyTorch's error, so that none outweighs the others.
        squares = [(ours.norm() / theirs.norm()) ** 2 for ours, theirs in pairs if theirs.any()]
        worst = max(largest(ours) / largest(theirs) for ours, theirs in pairs if theirs.any())
        ratios[name] = torch.stack(squares).mean().sqrt().item(), worst
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    cases = parser.parse_args().cases
    clsd_fast.use_backend("native")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for scale in STAGES:
            ratios = compare(scale, dtype, cases)
            line = ", ".join(f"{name} {r:.2f} ({worst:.2f})" for name, (r, worst) in ratios.items())
            print(f"x{scale} {str(dtype).removeprefix('torch.')}: {line}", flush=True)


if __name__ == "__main__":
    main()
