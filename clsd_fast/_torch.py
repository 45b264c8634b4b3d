"""PyTorch's private names that this package uses, all of them.

Tried on torch 2.10 to 2.13; those of functorch and of forward_ad, which 2.10 has, on 2.13 alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_are_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel_for_key
from torch._C import _functorch as functorch
from torch._C import _is_any_autocast_enabled as autocasts_any
from torch.autograd import forward_ad

__all__ = [
    "all_gather",
    "autocasts_any",
    "below_autograd",
    "constant_when_traced",
    "has_amx",
    "has_kernel_for_key",
    "is_batched_by_autograd",
    "is_below_transforms",
    "is_transformed",
    "may_be_batched",
]


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is under way.

    Neither sees into a kernel: a tangent would be lost without an error.
    """
    return transforms_are_active() or forward_ad._current_level >= 0


def is_below_transforms() -> bool:
    """:func:`is_transformed` as a kernel asks it that the dispatcher has found for autograd."""
    return functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def may_be_batched(tensor: Tensor) -> bool:
    """Whether vmap has taken a dimension out of the tensor's shape; compilers cannot tell."""
    if not transforms_are_active():
        return False
    if torch.compiler.is_compiling():
        return True
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def is_batched_by_autograd(grad: Tensor) -> bool:
    """Whether ``torch.autograd.grad(..., is_grads_batched=True)`` stands for the gradient: it has a
    vmap of its own, which no transform of torch.func is."""
    return functorch.is_legacy_batchedtensor(grad)


def constant_when_traced(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result, which imports all of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16."""
    return torch.cpu._is_amx_tile_supported()


def all_gather(tensor: Tensor, group: "torch.distributed.ProcessGroup") -> Tensor:
    """[1, ...] of each rank to [ranks, ...] in the order of ranks, with a gradient."""
    # Not at the top: it does not import where PyTorch was built without distributed.
    from torch.distributed import _functional_collectives as collectives

    # PyTorch 2.13 renamed it; there, the older name warns.
    renamed = hasattr(collectives, "all_gather_single_autograd")
    name = "all_gather_single_autograd" if renamed else "all_gather_tensor_autograd"
    return collectives.wait_tensor(getattr(collectives, name)(tensor, 0, group))
