"""PyTorch's private names that this package uses, all of them: tried on torch 2.10 to 2.13."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_are_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel_for_key
from torch._C import _is_any_autocast_enabled as autocasts_any

__all__ = [
    "all_gather",
    "autocasts_any",
    "below_autograd",
    "constant_when_traced",
    "has_kernel_for_key",
    "transforms_are_active",
]


def constant_when_traced(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result, which imports all of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def all_gather(tensor: Tensor, group: "torch.distributed.ProcessGroup") -> Tensor:
    """[1, ...] of each rank to [ranks, ...] in the order of ranks, with a gradient."""
    # Not at the top: it does not import where PyTorch was built without distributed.
    from torch.distributed import _functional_collectives as collectives

    # PyTorch 2.13 renamed it; there, the older name warns.
    renamed = hasattr(collectives, "all_gather_single_autograd")
    name = "all_gather_single_autograd" if renamed else "all_gather_tensor_autograd"
    return collectives.wait_tensor(getattr(collectives, name)(tensor, 0, group))
