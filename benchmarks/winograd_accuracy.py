"""Error of the native float32 convolution against the bound of tools/tolerance.py.

    PYTHONPATH=tools python benchmarks/winograd_accuracy.py [--cases 1000]

Prints the worst ratio of error to bound over random shapes, for the output and each gradient, with
random output gradients and with ones. `WINOGRAD_FACTOR` of tools/tolerance.py is the worst of all,
rounded up. Then, for one huge value among standard normal ones, the largest error of outputs that
do not see it, ours and PyTorch's.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from tolerance import bound, largest

import clsd_fast


def gradients(function, tensors, grad):
    output = function(*tensors)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad.to(output.dtype))]


def ratios(seed: int, ones: bool) -> list[float]:
    """Error over bound of output, and gradients of x, weight and bias, for one random case."""
    choose = random.Random(seed)
    channels, outputs = choose.choices((16, 24, 32, 48, 64, 128), k=2)
    batch, height, width = choose.randint(1, 3), choose.randint(4, 40), choose.randint(4, 40)
    shapes = (
        (batch, channels, height, width),
        (outputs, channels, 3, 3),
        (outputs,),
        (batch, outputs, height, width),
    )
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    if ones:
        grad.fill_(1)
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
        error = largest(a.double() - r)
        result.append(error / bound(r, b, largest) if error else 0.0)
    return result


def errors_beside(value: float) -> list[float]:
    """Largest error, ours and PyTorch's, of outputs of 64 channels that do not see the value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 24, 24, generator=generator)
    weight = torch.randn(64, 64, 3, 3, generator=generator) / 24
    x[0, 3, 9, 13] = value
    reference = F.conv2d(x.double(), weight.double(), padding=1)
    with clsd_fast.use_backend("native"):
        results = clsd_fast.conv3x3(x, weight), F.conv2d(x, weight, padding=1)
    errors = [(result.double() - reference).abs() for result in results]
    for error in errors:
        error[..., 8:11, 12:15] = 0
    return [error.max().item() for error in errors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    cases = parser.parse_args().cases
    for ones in (False, True):
        worst = torch.tensor([ratios(seed, ones) for seed in range(cases)]).amax(dim=0).tolist()
        print("output gradient of ones" if ones else "random output gradient")
        for name, value in zip(("output", "x", "weight", "bias"), worst, strict=True):
            print(f"    {name:8}{value:.2f}")
    print("largest error beside a value: ours, PyTorch's")
    for value in (1.0, 1e4, 1e6, 1e9):
        ours, theirs = errors_beside(value)
        print(f"    {value:<8.0e}{ours:.1e}  {theirs:.1e}")


if __name__ == "__main__":
    main()
