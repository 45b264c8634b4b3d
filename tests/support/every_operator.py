"""What holds for every operator, by the names of their calls (`support.calls`)."""

import pytest
import torch
from tolerance import assert_close
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clsd_fast import reference
from support.calls import CALLS, LARGE

ALL_SIZES = CALLS | LARGE


def call(name: str, dtype: torch.dtype = torch.float32) -> tuple:
    function, make = ALL_SIZES[name]
    return function, [t.to(dtype).requires_grad_() for t in make()]


def outputs(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output and the gradients of its sum."""
    function, tensors = call(name, dtype)
    output = function(*tensors)
    return [output, *torch.autograd.grad(output.sum(), tensors)]


def operator_ids(calls: list[tuple]) -> list[str]:
    return [
        " ".join([op, *(str(v) for v in values if not isinstance(v, (torch.Tensor, list)))])
        for op, values in calls
    ]


def check_against_the_reference(op: str, values: tuple) -> None:
    """An operator itself, in float64."""
    ours, expected = getattr(torch.ops.clsd_fast, op)(*values), getattr(reference, op)(*values)
    for a, b in zip(*map(tree_leaves, (ours, expected)), strict=True):
        assert_close(a, b, b, op)


def no_uninitialised_memory_is_read(name: str, dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(True)  # empty() is filled with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        results = outputs(name, dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


def double_backward_raises(name: str) -> None:
    function, tensors = call(name)
    # Squaring makes the incoming gradient depend on the inputs.
    grads = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first-order gradient, got a double"):
        torch.autograd.grad(grads[0].sum(), tensors)


def one_input_alone_gets_its_gradient(name: str) -> None:
    function, make = CALLS[name]
    _, *expected = outputs(name, torch.float64)
    for index, gradient in enumerate(expected):
        tensors = make()
        tensors[index].requires_grad_()
        (alone,) = torch.autograd.grad(function(*tensors).sum(), tensors[index])
        assert_close(alone, gradient, gradient, f"gradient {index}")


def far_apart(x: Tensor) -> Tensor:
    """A view whose entries lie 2^31 elements apart; the memory between them is never touched."""
    memory = torch.empty(2**31 * (len(x) - 1) + x.numel(), dtype=x.dtype)
    return memory.as_strided(x.shape, (2**31, *x[0].contiguous().stride())).copy_(x)


def offsets_beyond_32_bits(name: str) -> None:
    function, make = CALLS[name]
    near = [t.float() for t in make()]
    expected = function(*near)
    batched = [i for i, t in enumerate(near) if t.dim() >= 3 and len(t) == len(near[0])]
    for index in batched:
        inputs = [far_apart(t) if i == index else t for i, t in enumerate(near)]
        assert torch.equal(function(*inputs), expected)


def compiles_as_one_graph(name: str, compiler: str) -> None:
    """Forward and backward, once for all calls of the same shapes."""
    function, make = CALLS[name]
    tensors = [t.float() for t in make()]
    compiled = torch.compile(function, fullgraph=True, backend=compiler)

    def gradients(function):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    expected, first = gradients(function), gradients(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        second = gradients(compiled)
    for ours in (first, second):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b)
