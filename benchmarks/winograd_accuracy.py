"""Error of the native float32 convolution against the bound of tests/tolerance.py.

    PYTHONPATH=tests python benchmarks/winograd_accuracy.py [--cases 1000]

Prints the worst ratio of error to bound over random shapes, for the output and each gradient.
`WINOGRAD_FACTOR` of tests/tolerance.py is this figure, rounded up.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from tolerance import rounding
from util import rand

import clsd_fast


def gradients(function, tensors, grad):
    output = function(*tensors)
    return [output, *torch.autograd.grad(output, tensors, grad.to(output.dtype))]


def ratios(seed: int) -> list[float]:
    """Error over bound of output, and gradients of x, weight and bias, for one random case."""
    choose = random.Random(seed)
    channels, outputs = choose.choices((16, 24, 32, 48, 64, 128), k=2)
    batch, height, width = choose.randint(1, 3), choose.randint(6, 40), choose.randint(6, 40)
    shapes = (
        (batch, channels, height, width),
        (outputs, channels, 3, 3),
        (outputs,),
        (batch, outputs, height, width),
    )
    x, weight, bias, grad = (rand(*shape, seed=seed).float() for shape in shapes)
    tensors = [x, weight / (3 * channels**0.5), bias]

    def leaves(dtype):
        return [t.to(dtype).requires_grad_() for t in tensors]

    def plain(*t):
        return F.conv2d(*t, padding=1)

    reference = gradients(plain, leaves(torch.float64), grad)
    theirs = gradients(plain, leaves(torch.float32), grad)
    with clsd_fast.use_backend("native"):
        ours = gradients(clsd_fast.conv3x3, leaves(torch.float32), grad)
    result = []
    for a, b, r in zip(ours, theirs, reference, strict=True):
        bound = 2 * (b.double() - r).abs().max() + 2 * rounding(r.detach(), torch.float32)
        result.append(((a.double() - r).abs().max() / bound).item())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    cases = parser.parse_args().cases
    worst = torch.tensor([ratios(seed) for seed in range(cases)]).amax(dim=0)
    for name, value in zip(("output", "x", "weight", "bias"), worst.tolist(), strict=True):
        print(f"{name:8}{value:.2f}")


if __name__ == "__main__":
    main()
