"""What the tests of `accelerate` share: a model beside its accelerated copy, and its report."""

import copy

import torch

from clsd_fast import accelerate
from support.util import rand


def accelerated(model):
    """The model, and an accelerated copy; both in float64."""
    model = model.double()
    return model, accelerate(copy.deepcopy(model))


def assert_same(ours, plain, x, rtol=1e-10):
    """Outputs, and the gradients of x and of all parameters."""
    results = []
    for model in (ours, plain):
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        parameters = [p for p in model.parameters() if p.requires_grad]
        weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).reshape(output.shape)
        grads = torch.autograd.grad((output * weights).sum(), [leaf, *parameters])
        results.append([output.detach(), *grads])
    torch.testing.assert_close(*results, rtol=rtol, atol=rtol)


def images(channels=16, seed=0):
    return rand(2, channels, 5, 6, seed=seed)


def reasons(model):
    return {row.name: row.reason for row in accelerate.report(model).rows if row.reason}


def operators(model):
    return [row.operator for row in accelerate.report(model).rows if row.operator]
