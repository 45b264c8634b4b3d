"""PyTorch's private names that this package uses, all of them: tried on torch 2.10 to 2.13."""

from torch._C import _are_functorch_transforms_active as transforms_are_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel_for_key
from torch._C import _is_any_autocast_enabled as autocasts_any

__all__ = ["autocasts_any", "below_autograd", "has_kernel_for_key", "transforms_are_active"]
