"""upsample_tail in plain PyTorch, its tensors, and comparisons of the two."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clsd_fast import upsample_tail
from clsd_fast._tail_axes import STAGES
from support.util import leaves, rand, run

SCALES = (2, 3, 4)
#: How far a composed tail may be from the plain one; the share of the largest element.
EXACT_SHARE = 1e-12


def arguments(tensors: list[Tensor | None], scale: int) -> tuple:
    """The flat tensors x, weight and bias of each stage and of the end, as the function's."""
    x, *ups, out_weight, out_bias = tensors
    return x, ups[::2], ups[1::2], out_weight, out_bias, scale


def plain(*tensors: Tensor | None, scale: int) -> Tensor:
    x, weights, biases, out_weight, out_bias, _ = arguments(tensors, scale)
    for stage, weight, bias in zip(STAGES[scale], weights, biases, strict=True):
        x = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), stage)
    return F.conv2d(x, out_weight, out_bias, padding=1)


def composed(*tensors: Tensor | None, scale: int) -> Tensor:
    return upsample_tail(*arguments(tensors, scale))


def inputs(
    scale: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    bias: bool = True,
    middle: int | None = None,
    outputs: int = 3,
    seed: int = 0,
) -> list[Tensor | None]:
    """x, weight and bias of each stage, weight and bias of the last convolution."""
    tensors, count = [rand(batch, channels, height, width, seed=seed)], channels
    for number, stage in enumerate(STAGES[scale], start=seed):
        features = (middle or channels) + number  # so that no two sizes are the same by chance
        weight = rand(features * stage**2, count, 3, 3, seed=number)
        tensors += [weight / (3 * count**0.5), rand(len(weight), seed=seed) if bias else None]
        count = features
    out_weight = rand(outputs, count, 3, 3, seed=seed) / (3 * count**0.5)
    return [*tensors, out_weight, rand(outputs, seed=seed) if bias else None]


def differences(scale: int, tensors: list[Tensor | None]) -> list[float]:
    """Of output and gradients from the plain tail's, as shares of the largest element."""
    grad = rand(*plain(*tensors, scale=scale).shape, seed=3).to(tensors[0])
    ours, theirs = (
        run(lambda *t, f=f: f(*t, scale=scale), leaves(tensors, torch.float64, lambda t: t), grad)
        for f in (composed, plain)
    )
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)]


def empty_batch(scale: int) -> None:
    tensors = [t.requires_grad_() for t in inputs(scale, 0, 8, 4, 4)]
    output = composed(*tensors, scale=scale)
    assert output.shape == (0, 3, 4 * scale, 4 * scale)
    for tensor, grad in zip(tensors, torch.autograd.grad(output.sum(), tensors), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))
