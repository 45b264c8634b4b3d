"""Holds the CUDA operators, emulated on CPU tensors, to the tolerance rule."""

from collections.abc import Callable, Iterator

import torch
from emulation import Emulation
from tolerance import assert_close
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


def check(emulation: Emulation, op: str, *args: object) -> list[Tensor]:
    """Hold an operator's outputs for 16-bit tensors to the tolerance rule, and return them, those
    in lists too."""
    before = tree_map_only(Tensor, Tensor.clone, args)
    ours = tree_leaves(getattr(emulation.ops, op)(*args))
    for argument, copy in zip(tree_leaves(args), tree_leaves(before), strict=True):
        assert not isinstance(copy, Tensor) or torch.equal(argument, copy), "an input was written"
    exact = tree_leaves(getattr(reference, op)(*tree_map_only(Tensor, Tensor.double, args)))
    theirs = tree_leaves(getattr(reference, op)(*args))
    for i, result in enumerate(zip(ours, exact, theirs, strict=True)):
        assert_close(*result, f"{op}, output {i}")
        assert formats(ours[i]) == formats(theirs[i]), f"{op}, output {i}: memory format"
    return ours


def caught(emulation: Emulation, call: Callable[[], Tensor], expected: Tensor) -> Iterator[bool]:
    """Of every seed, when it is asked for, whether the call raises or its result is wrong."""
    for seed in SEEDS:
        emulation.seed(seed)
        try:
            yield not torch.allclose(call(), expected, rtol=1e-5, atol=1e-5)
        except RuntimeError:
            yield True
