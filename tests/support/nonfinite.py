"""NaN and infinities among rows: where they go in the losses and their gradients."""

import itertools

import torch

import clsd_fast

VALUES = (float("nan"), float("inf"), float("-inf"))
ROWS, NEGATIVES, FEATURES = 7, 5, 9


def kinds(tensor):
    """0 for a number, 1 for NaN, 2 and 3 for the infinities."""
    of = torch.zeros(tensor.shape, dtype=torch.int)
    for kind, mask in enumerate((tensor.isnan(), tensor == torch.inf, tensor == -torch.inf), 1):
        of[mask] = kind
    return of


def info_nce(excluding, reduction):
    mask = torch.rand(ROWS, ROWS, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[:4, 2] = True

    def function(query, key, negatives=None):
        options = {"temperature": 0.5, "reduction": reduction}
        if excluding == "mask":
            options["mask"] = mask if negatives is None else mask[:, :NEGATIVES]
        elif excluding == "labels":
            options["labels"] = torch.tensor([0, 0, 0, 1, 2, 1, 0])
        return clsd_fast.info_nce(query, key, negatives, **options)

    return function


def functions():
    """(name, function, number of its tensors)"""
    for reduction in ("none", "mean"):
        for excluding in ("nothing", "mask", "labels"):
            for count in (2, 3):
                if excluding != "labels" or count == 2:
                    name = f"info_nce {reduction} {excluding} {count}"
                    yield name, info_nce(excluding, reduction), count
    for metric in ("cosine", "dot", "l1"):

        def similarity(query, key, metric=metric):
            return clsd_fast.pairwise_similarity(query, key, metric)

        yield f"pairwise_similarity {metric}", similarity, 2
    for count in (2, 3):
        yield f"distance_ratio_loss {count}", clsd_fast.distance_ratio_loss, count


FUNCTIONS = {name: (function, count) for name, function, count in functions()}


def results(function, tensors):
    """The output, and the gradients of its sum."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


def go_where_the_reference_sends_them(name, dtype):
    """From each tensor of a function in turn."""
    function, count = FUNCTIONS[name]
    for value, at in itertools.product(VALUES, range(count)):
        generator = torch.Generator().manual_seed(at)
        sizes = (ROWS, ROWS, NEGATIVES)[:count]
        tensors = [torch.randn(n, FEATURES, generator=generator).to(dtype) for n in sizes]
        tensors[at][2, 4] = value
        ours = results(function, tensors)
        with clsd_fast.use_backend("reference"):
            expected = results(function, tensors)
        assert value in VALUES[1:] or any(tensor.isnan().any() for tensor in expected)
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(kinds(a), kinds(b)), (value, at)
            finite = kinds(b) == 0
            torch.testing.assert_close(a[finite], b[finite], rtol=2e-3, atol=1e-3)
