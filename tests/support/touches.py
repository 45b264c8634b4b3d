"""What users do to a module that its class does not know of."""

import torch
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization


def touch_by_hook(module, seen):
    module.register_forward_hook(lambda module, args, output: seen.append(output.shape))


def touch_by_replaced_forward(module, seen):
    forward = module.forward
    module.forward = lambda x: seen.append(x.shape) or forward(x)


def touch_by_pruning(module, seen):
    """Whose weight is one times a mask when the module is called, and not before."""
    prune.l1_unstructured(module, "weight", 0.5)
    module.register_forward_hook(lambda *_: seen.append(module.weight_orig.shape))
    with torch.no_grad():
        module.weight_orig.mul_(3)


def touch_by_parametrization(module, seen):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            seen.append(weight.shape)
            return 2 * weight

    register_parametrization(module, "weight", Doubled())


TOUCHES = [
    touch_by_hook,
    touch_by_replaced_forward,
    touch_by_pruning,
    touch_by_parametrization,
]
