"""Holds the CUDA operators, emulated on CPU tensors, to the tolerance rule."""

from collections.abc import Callable, Iterator

import torch
from emulation import Emulation
from tolerance import assert_close, assert_draws_close
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from clsd_fast import reference

__all__ = ["SEEDS", "Emulation", "caught", "check", "formats"]

#: Of the order of warps and lanes, and of which copies are late, that tests try.
SEEDS = range(16)


def formats(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it is contiguous, and channels_last: one pixel is both, and so is an empty tensor."""
    if tensor.numel() == 0:
        return True, True
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous(), channels_last


#: Of a list's tensors with fewer elements, as biases, each is a draw.
FEW = 32


def check(emulation: Emulation, op: str, *args: object) -> list[Tensor]:
    """Hold an operator's outputs for 16-bit tensors to the tolerance rule, and return them, those
    in lists too."""
    before = tree_map_only(Tensor, Tensor.clone, args)
    found = getattr(emulation.ops, op)(*args)
    ours = tree_leaves(found)
    for argument, copy in zip(tree_leaves(args), tree_leaves(before), strict=True):
        assert not isinstance(copy, Tensor) or torch.equal(argument, copy), "an input was written"
    exact = getattr(reference, op)(*tree_map_only(Tensor, Tensor.double, args))
    theirs = getattr(reference, op)(*args)
    outputs = (
        [result] if isinstance(result, Tensor) else result for result in (found, exact, theirs)
    )
    for i, output in enumerate(zip(*outputs, strict=True)):
        name = f"{op}, output {i}"
        draws = list(zip(*map(tree_leaves, output), strict=True))
        if len(draws) > 1 and 0 < draws[0][0].numel() < FEW:
            assert_draws_close(draws, name)
        else:
            for draw in draws:
                assert_close(*draw, name)
        for result, _, expected in draws:
            assert formats(result) == formats(expected), f"{name}: memory format"
    return ours


def caught(emulation: Emulation, call: Callable[[], Tensor], expected: Tensor) -> Iterator[bool]:
    """Of every seed, when it is asked for, whether the call raises or its result is wrong."""
    for seed in SEEDS:
        emulation.seed(seed)
        try:
            yield not torch.allclose(call(), expected, rtol=1e-5, atol=1e-5)
        except RuntimeError:
            yield True
