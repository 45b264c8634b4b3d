"""The transforms of torch.func and forward-mode derivatives, which see into no kernel."""

import pytest
import torch
from support.calls import CALLS, FORWARDS
from support.every_operator import operator_ids
from support.grids import NATIVE_FIRST
from tolerance import assert_close
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

import clsd_fast


def inputs(name):
    """The function of a call, its tensors and a direction for each."""
    function, make = CALLS[name]
    generator = torch.Generator().manual_seed(7)
    tensors = make()
    directions = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in tensors]
    return function, tensors, directions


def gradients(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    loss = function(*leaves).square().sum()
    return torch.autograd.grad(loss, leaves, materialize_grads=True)  # of another output: zeros


def directional(function, tensors, directions):
    """The derivative of the sum of squares along the directions, by gradients."""
    pairs = zip(gradients(function, tensors), directions, strict=True)
    return sum((gradient * direction).sum() for gradient, direction in pairs)


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CALLS)
def test_forward_mode(backend, name):
    function, tensors, directions = inputs(name)
    expected = directional(function, tensors, directions)
    assert expected.abs() > 1e-3

    def loss(*tensors):
        return function(*tensors).square().sum()

    close(torch.func.jvp(loss, tuple(tensors), tuple(directions))[1], expected)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, directions, strict=True)]
        close(forward_ad.unpack_dual(loss(*duals)).tangent, expected)


@pytest.mark.parametrize("name", CALLS)
def test_gradient_transform(backend, name):
    function, tensors, _ = inputs(name)
    every = tuple(range(len(tensors)))
    found = torch.func.grad(lambda *t: function(*t).square().sum(), every)(*tensors)
    for ours, expected in zip(found, gradients(function, tensors), strict=True):
        close(ours, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_each_sample(backend, name, layout):
    """By vmap, of inputs that differ from sample to sample in the first two tensors."""
    function, tensors, directions = inputs(name)
    if tensors[0].dim() == 4:
        tensors = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in tensors]
    samples = [torch.stack([t, t + d]) for t, d in zip(tensors[:2], directions, strict=False)]
    every = tuple(range(len(tensors)))
    gradient = torch.func.grad(lambda *t: function(*t).square().sum(), every)
    dims = (0, 0, *(None for _ in tensors[2:]))
    found = torch.func.vmap(gradient, dims)(*samples, *tensors[2:])
    for sample in range(2):
        expected = gradients(function, [*(s[sample] for s in samples), *tensors[2:]])
        for ours, theirs in zip(found, expected, strict=True):
            close(ours[sample], theirs)


def recorded(name):
    """The backward of a call that has run, and two gradients of its output."""
    function, tensors, _ = inputs(name)
    leaves = [t.requires_grad_() for t in tensors]
    output = function(*leaves)

    def backward(grad, **options):
        return torch.autograd.grad(output, leaves, grad, retain_graph=True, **options)

    return backward, torch.stack([torch.ones_like(output), torch.full_like(output, -0.5)])


def is_for_each(found, backward, grads):
    for sample, grad in enumerate(grads):
        for ours, expected in zip(found, backward(grad), strict=True):
            close(ours[sample], expected)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_over_the_backward_of_a_recorded_call(backend, name):
    backward, grads = recorded(name)
    is_for_each(torch.func.vmap(backward)(grads), backward, grads)


@pytest.mark.parametrize("name", CALLS)
def test_batched_gradients(backend, name):
    """Which are another vmap of autograd's own."""
    backward, grads = recorded(name)
    if backend == "native" and name == "residual_blocks":
        sentence = "residual_blocks: expected one gradient at a time, got is_grads_batched=True; "
        with pytest.raises(RuntimeError, match=sentence):
            backward(grads, is_grads_batched=True)
    else:
        is_for_each(backward(grads, is_grads_batched=True), backward, grads)


def test_second_derivatives(backend):
    function, (anchor, positive), _ = inputs("distance_ratio_loss")
    hessian = torch.func.hessian(lambda a: function(a, positive[:1, :3, :2]))(anchor[:1, :3, :2])
    assert hessian.shape == (1, 3, 2) * 2 and hessian.abs().max() > 1e-3
    with clsd_fast.use_backend("reference"):
        expected = torch.autograd.functional.hessian(
            lambda a: function(a, positive[:1, :3, :2]), anchor[:1, :3, :2]
        )
    close(hessian, expected)


@NATIVE_FIRST
@pytest.mark.parametrize("name", ["conv3x3", "residual_blocks", "upsample_tail x3", "info_nce"])
def test_compiled_transforms(backend, name):
    """And what is compiled outside of transforms still has the operator."""
    function, tensors, _ = inputs(name)
    torch._dynamo.reset()
    gradient = torch.func.grad(lambda *t: function(*t).square().sum())
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    close(compiled(*tensors), gradients(function, tensors)[0])


def first_output(op, values):
    """An operator itself, as a function of its floating-point tensors, those of lists too."""
    leaves, spec = tree_flatten(list(values))
    places = [
        i for i, v in enumerate(leaves) if isinstance(v, torch.Tensor) and v.is_floating_point()
    ]

    def function(*tensors):
        arguments = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            arguments[place] = tensor
        result = getattr(torch.ops.clsd_fast, op)(*tree_unflatten(arguments, spec))
        while not isinstance(result, torch.Tensor):
            result = result[0]
        return result

    return function, [leaves[place] for place in places]


@pytest.mark.parametrize("op, values", FORWARDS, ids=operator_ids(FORWARDS))
def test_operators_themselves(native, op, values):
    """As exported programs and callers of torch.ops have them."""
    if op == "residual_block":
        values = (*values[:-1], True)
    function, tensors = first_output(op, values)
    directions = [torch.ones_like(t) for t in tensors]
    expected = directional(function, tensors, directions)

    def loss(*tensors):
        return function(*tensors).square().sum()

    close(torch.func.jvp(loss, tuple(tensors), tuple(directions))[1], expected)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, directions, strict=True)]
        close(forward_ad.unpack_dual(loss(*duals)).tangent, expected)
    gradient = torch.func.grad(loss)
    close(gradient(*tensors), gradients(function, tensors)[0])
    dims = (0, *(None for _ in tensors[1:]))
    pair = torch.stack([tensors[0], 2 * tensors[0]])
    for transformed in (function, gradient):
        each = torch.func.vmap(transformed, dims)(pair, *tensors[1:])
        close(each, torch.stack([transformed(x, *tensors[1:]) for x in pair]))


def test_an_exported_model(native):
    student, x = clsd_fast.EDSR(2, 2, 8).double().eval(), torch.rand(1, 3, 5, 6).double()
    program = torch.export.export(student, (x,)).module()
    expected = torch.func.jvp(student, (x,), (torch.ones_like(x),))[1]
    close(torch.func.jvp(program, (x,), (torch.ones_like(x),))[1], expected)


def test_compiled_calls_are_fused(native):
    function, tensors, _ = inputs("conv3x3")
    targets = []

    def record(graph, _):
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=record)(*tensors)
    assert torch.ops.clsd_fast.conv3x3.default in targets


IMAGES, WEIGHT = torch.linspace(-1, 1, 90).reshape(1, 2, 5, 9), torch.linspace(-1, 2, 36)
WEIGHT = WEIGHT.reshape(2, 2, 3, 3)
# Of so many losses that the largest of PyTorch's rounding errors is not 0 by chance.
ROWS = torch.linspace(-1, 1, 64).reshape(16, 4).sin(), torch.linspace(-1, 3, 64).reshape(16, 4)
NUMBERS = {
    "conv3x3": (lambda s, x, w: clsd_fast.conv3x3(x, w, res_scale=s), (IMAGES, WEIGHT)),
    "residual_block": (
        lambda s, x, w: clsd_fast.residual_block(x, w, None, w, None, s),
        (IMAGES, WEIGHT),
    ),
    "residual_blocks": (
        lambda s, x, w: clsd_fast.residual_blocks(x, [w] * 2, [], [w] * 2, [], s)[0],
        (IMAGES, WEIGHT),
    ),
    "distance_ratio_loss": (
        lambda s, a, p: clsd_fast.distance_ratio_loss(a, p, eps=s, reduction="none"),
        ROWS,
    ),
    "info_nce": (
        lambda s, q, k: clsd_fast.info_nce(q, k, temperature=s, reduction="none"),
        ROWS,
    ),
}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("op", NUMBERS)
def test_a_tensor_for_a_number_gets_its_gradient(backend, op, shape):
    function, tensors = NUMBERS[op]
    value = torch.full(shape, 0.3, requires_grad=True)
    output = function(value, *tensors)
    with clsd_fast.use_backend("reference"):
        exact, theirs = function(0.3, *(t.double() for t in tensors)), function(0.3, *tensors)
    assert_close(output, exact, theirs, op)
    (gradient,) = torch.autograd.grad(output.sum(), value)
    step = 1e-2
    above, below = (function(0.3 + sign * step, *tensors).sum() for sign in (1, -1))
    numeric = (above - below) / (2 * step)
    torch.testing.assert_close(gradient.reshape(()), numeric, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("op", NUMBERS)
@pytest.mark.parametrize("value", [torch.ones(2), torch.tensor(1)], ids=["two", "an integer"])
def test_no_other_tensor_is_a_number(backend, op, value):
    function, tensors = NUMBERS[op]
    sentence = rf"{op}: expected \w+ a number or a floating-point tensor of one element, got \w+ of"
    with pytest.raises(ValueError, match=sentence):
        function(value, *tensors)
