"""From maps to the vectors that are contrasted: pooling, and perceptrons that run together."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ._children import are_untouched, is_untouched
from ._torch import is_transformed


def means_of_pixels(maps: Sequence[Tensor]) -> Tensor:
    """``torch.stack([x.mean((-2, -1)) for x in maps])``, in float32 for 16-bit maps."""
    return _apply(_MeansOfPixels, *maps)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """The function; below function transforms its forward as PyTorch differentiates it."""
    return function.forward(*args) if is_transformed() else function.apply(*args)


class _MeansOfPixels(torch.autograd.Function):
    """The gradients are expanded views: PyTorch's own would be divided and cast as whole maps, one
    by one."""

    @staticmethod
    def forward(*maps: Tensor) -> Tensor:
        dtype = torch.float32 if maps[0].element_size() == 2 else maps[0].dtype
        if is_transformed():  # which differentiates what runs here
            return torch.stack([x.mean((-2, -1), dtype=dtype) for x in maps])
        means = maps[0].new_empty(len(maps), *maps[0].shape[:2], dtype=dtype)
        for mean, x in zip(means, maps, strict=True):
            torch.mean(x, (-2, -1), dtype=dtype, out=mean)
        return means

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels = ctx.shape[-2:].numel()
        if torch.is_grad_enabled():  # which is for a second derivative
            shares = (grad / pixels).to(ctx.dtype)
        else:
            shares = torch.div(grad, pixels, out=grad.new_empty(grad.shape, dtype=ctx.dtype))
        grads = shares[..., None, None].expand(-1, *ctx.shape)
        pairs = zip(grads, ctx.needs_input_grad, strict=True)
        return tuple(of_map if needed else None for of_map, needed in pairs)


def project(projections: list[nn.Sequential], vectors: Tensor) -> Tensor:
    """``projection(x)`` of each pair, [P, ..., D] of [P, ..., C], in the parameters' dtype.

    All together they are two batched products: one by one, each is a launch too small for a GPU.
    Where one is not what it was made as, they are called.
    """
    if not all(map(_is_as_made, projections)):
        pairs = zip(projections, vectors, strict=True)
        return torch.stack([p(x.to(next(p.parameters()).dtype)) for p, x in pairs])
    layers = [[cast(nn.Linear, p[index]) for p in projections] for index in (0, 2)]
    names = ("weight", "bias")
    tensors = [getattr(layer, name) for alike in layers for name in names for layer in alike]
    weights1, biases1, weights2, biases2 = _apply(_Stacks, len(projections), *tensors)
    x = vectors.to(weights1.dtype)
    hidden = _linear(weights1, biases1, x.flatten(1, -2).mT).relu()
    return _linear(weights2, biases2, hidden).mT.unflatten(1, x.shape[1:-1])


class _Stacks(torch.autograd.Function):
    """``[torch.stack(tensors[i : i + count]) for i in range(0, len(tensors), count)]``, by one
    launch; the gradients are views."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        firsts = tensors[::count]
        parts = torch.cat([t.flatten() for t in tensors]).split([count * t.numel() for t in firsts])
        pairs = zip(parts, firsts, strict=True)
        return tuple(part.view(count, *first.shape) for part, first in pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad for of_layer in grads for grad in of_layer)


def _is_as_made(projection: nn.Module) -> bool:
    layers = nn.Linear, nn.ReLU, nn.Linear
    return is_untouched(projection, nn.Sequential) and are_untouched(
        cast(nn.Sequential, projection), *layers
    )


def _linear(weights: Tensor, biases: Tensor, x: Tensor) -> Tensor:
    """Of each layer and each [C, n] of x, which is [P, C, n], as the gradients of the weights are
    then products that lie as the weights do."""
    return torch.baddbmm(biases[..., None], weights, x)


def make_projection(channels: int, projection_dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection_dim)
    )
