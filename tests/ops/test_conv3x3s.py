"""Several convolutions as one call, which models make of their ends."""

import pytest
import torch
from support.grids import cover
from support.util import DTYPES, LAYOUTS, rand
from torch.library import opcheck

import clsd_fast
from clsd_fast import conv3x3
from clsd_fast.ops.conv3x3s import conv3x3s, kind_of_convolution


def operands(count, layout=lambda x: x, dtype=torch.float64, bias=True):
    """Leaves: the images, and weight and bias of each, and a residual."""
    xs = [rand(2, 5, 4, 6, seed=i) for i in range(count)]
    weights = [rand(7, 5, 3, 3, seed=i) / 10 for i in range(count)]
    biases = [rand(7, seed=i) for i in range(count if bias else 0)]
    lists = [[layout(t.to(dtype)).requires_grad_() for t in ts] for ts in (xs, weights, biases)]
    return *lists, layout(rand(2, 7, 4, 6, seed=9).to(dtype)).requires_grad_()


def together(xs, weights, biases, residual):
    parameters = list(zip(weights, biases or [None] * len(xs), strict=True))
    return conv3x3s(xs, parameters, residual)


def one_by_one(xs, weights, biases, residual):
    convolutions = zip(xs, weights, biases or [None] * len(xs), strict=True)
    return [conv3x3(*tensors, residual=residual) for tensors in convolutions]


def gradients(outputs, leaves, used=None):
    numbered = enumerate(outputs, start=1)
    total = sum(i * y.square().sum() for i, y in numbered if used is None or i - 1 in used)
    return torch.autograd.grad(total, leaves, allow_unused=True)


@cover(dtype=DTYPES, layout=LAYOUTS, count=[1, 2, 4], bias=[True, False], skip=[True, False])
def test_several_are_each_of_them(native, dtype, layout, count, bias, skip):
    """Bit-equal, gradients too; but the residual's is rounded once."""
    xs, weights, biases, residual = operands(count, layout, dtype, bias)
    given = residual if skip else None
    results = [f(xs, weights, biases, given) for f in (together, one_by_one)]
    assert all(map(torch.equal, *results))
    leaves = [*xs, *weights, *biases, *([residual] if skip else [])]
    ours, theirs = (list(gradients(ys, leaves)) for ys in results)
    total, _ = (ours.pop(), theirs.pop()) if skip else (None, None)
    assert all(map(torch.equal, ours, theirs))
    if total is not None:
        exact = sum((2 * i * y).double() for i, y in enumerate(results[0], start=1))
        assert total.dtype == dtype and total.stride() == results[0][0].stride()
        eps, summed = (
            torch.finfo(t).eps for t in (dtype, torch.promote_types(dtype, torch.float32))
        )
        atol = 2 * count * summed * exact.abs().max().item()
        torch.testing.assert_close(total, exact.to(dtype), rtol=eps, atol=atol)


@pytest.mark.parametrize("used", [[1], [0, 2]])
@pytest.mark.parametrize("wanted", [None, "xs", "weights", "biases", "residual"])
def test_some_of_several_have_gradients(native, used, wanted):
    """Others have none, as where nothing depends on them."""
    named = dict(zip(("xs", "weights", "biases", "residual"), operands(3), strict=True))
    leaves = []
    for name, tensors in named.items():
        for tensor in tensors if isinstance(tensors, list) else [tensors]:
            tensor.requires_grad_(wanted in (None, name))
            leaves += [tensor] if tensor.requires_grad else []
    pairs = [gradients(f(*named.values()), leaves, used) for f in (together, one_by_one)]
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs)


def test_compiled_as_one_graph(native):
    *lists, residual = operands(3)
    leaves = [t for tensors in lists for t in tensors] + [residual]
    compiled = torch.compile(together, backend="aot_eager", fullgraph=True)
    ours, expected = (gradients(f(*lists, residual), leaves) for f in (compiled, together))
    torch.testing.assert_close(ours, expected)


def test_autocast(native):
    *lists, residual = operands(2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = [f(*lists, residual) for f in (together, one_by_one)]
    assert all(map(torch.equal, *results)) and results[0][0].dtype == torch.bfloat16


def test_convolutions_of_one_kind(native):
    """Have one shape, dtypes and biases; without a native kernel, none is of any."""
    (x, other), (weight, second), (bias, _), _ = operands(2)
    kind = kind_of_convolution(x, (weight, bias))
    assert kind is not None and kind == kind_of_convolution(other, (second, bias))
    for different in (
        kind_of_convolution(x[:1], (weight, bias)),
        kind_of_convolution(x.bfloat16(), (weight.bfloat16(), bias.bfloat16())),
        kind_of_convolution(x, (weight[:4], bias[:4])),
        kind_of_convolution(x, (weight, None)),
    ):
        assert different not in (None, kind)
    with clsd_fast.use_backend("reference"):
        assert kind_of_convolution(x, (weight, bias)) is None


@cover(quick=1, layout=LAYOUTS)
def test_opcheck(layout):
    *lists, residual = operands(2, layout, torch.float32)
    op = torch.ops.clsd_fast.conv3x3s
    opcheck(op, (*lists, residual))
    opcheck(op, (*lists[:2], [], None))
    xs, weights = ([t.detach() for t in tensors] for tensors in lists[:2])
    grads = [residual.detach().clone() for _ in xs]
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        opcheck(torch.ops.clsd_fast.conv3x3s_backward, (grads, xs, weights, *needs))
