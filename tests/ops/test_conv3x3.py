import itertools

import pytest
import torch
import torch.nn.functional as F
from support.calls import EPILOGUES
from support.grids import cover
from support.util import (
    DTYPES,
    LAYOUTS,
    channels_last,
    compare,
    contiguous,
    convolution_algorithm,
    memory_format,
    rand,
    sliced,
    tolerance_factor,
)
from tolerance import assert_close
from torch.library import opcheck

import clsd_fast
from clsd_fast import conv3x3


def plain(x, weight, bias=None, residual=None, *, res_scale=1.0, relu=False):
    y = res_scale * F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = residual + y
    return F.relu(y) if relu else y


def fused(options):
    return lambda x, weight, bias=None, residual=None: conv3x3(
        x, weight, bias, residual=residual, **options
    )


def inputs(batch, channels, out_channels, height, width, bias=True, residual=False):
    return [
        rand(batch, channels, height, width),
        rand(out_channels, channels, 3, 3) / (3 * channels**0.5),
        rand(out_channels) if bias else None,
        rand(batch, out_channels, height, width, seed=1) if residual else None,
    ]


@cover(
    dtype=DTYPES,
    layout=LAYOUTS,
    channels=[(3, 64), (16, 16), (48, 48), (64, 3), (65, 65)],
)
def test_channels_layouts_dtypes(backend, dtype, layout, channels):
    compare(fused({}), plain, inputs(2, *channels, 5, 7), dtype, layout)


@cover(channels=[(17, 36), (50, 50), (100, 70)], layout=LAYOUTS, dtype=DTYPES[1:])
def test_channels_that_fill_no_panels(native, channels, layout, dtype):
    """Of 16 and more, which Winograd pads."""
    assert convolution_algorithm(*channels, 9, 13) == "winograd"
    compare(fused({}), plain, inputs(2, *channels, 9, 13, residual=True), dtype, layout)


@cover(size=[(5, 7), (1, 1), (1, 6), (9, 1), (17, 14)], layout=LAYOUTS, dtype=DTYPES)
def test_sizes(backend, size, layout, dtype):
    compare(fused({}), plain, inputs(2, 16, 24, *size), dtype, layout)


@cover(channels=[(64, 64), (40, 72), (3, 64), (64, 3)], dtype=DTYPES)
def test_images_larger_than_a_tile(backend, channels, dtype):
    # Rows of seven Winograd tiles, which no block of 24 ends with.
    compare(fused({}), plain, inputs(1, *channels, 25, 27), dtype)


@cover(
    dtype=DTYPES,
    layout=[contiguous, channels_last],
    channels=[(8, 12), (16, 24), (3, 12), (12, 3)],
    epilogue=EPILOGUES,
)
def test_epilogues(backend, dtype, layout, channels, epilogue):
    bias, residual, relu, res_scale = epilogue
    options = {"relu": relu, "res_scale": res_scale}
    tensors = inputs(2, *channels, 6, 5, bias, residual)
    compare(fused(options), lambda *t: plain(*t, **options), tensors, dtype, layout)


def leaky(function, slope):
    """Of its tensors, the last one is the slope where there is no number."""

    def call(x, weight, bias, residual, *slopes):
        name = "prelu" if slopes else "leaky_relu"
        options = {"activation": name, "negative_slope": (*slopes, slope)[0]}
        if residual is not None:
            options["res_scale"] = 0.5
        return function(x, weight, bias, residual=residual, **options)

    return call


def plain_leaky(x, weight, bias, residual, activation, negative_slope, res_scale=1.0):
    y = plain(x, weight, bias, residual, res_scale=res_scale)
    return {"leaky_relu": F.leaky_relu, "prelu": F.prelu}[activation](y, negative_slope)


#: Numbers of leaky_relu, and numbers of elements of prelu's tensor.
SLOPES = [0.2, 0.05, 0.0, -0.3, "one", "each"]


def leaky_inputs(channels, slope, residual):
    sizes = {"one": 1, "each": channels[1]}
    slopes = [rand(sizes[slope], seed=3)] if slope in sizes else []
    # Of rows of 8 pixels, a narrow convolution with nothing but a bias makes its products in place.
    return [*inputs(2, *channels, 3, 8, residual=residual), *slopes]


#: The cases of an activation with a slope.
LEAKY = cover(
    slope=SLOPES,
    dtype=DTYPES,
    layout=LAYOUTS,
    channels=[(8, 12), (16, 24), (3, 16), (12, 3)],
    residual=[True, False],
)


@LEAKY
def test_leaky_activations(backend, slope, dtype, layout, channels, residual):
    tensors = leaky_inputs(channels, slope, residual)
    compare(leaky(conv3x3, slope), leaky(plain_leaky, slope), tensors, dtype, layout)


@LEAKY
def test_leaky_activations_in_inference(backend, slope, dtype, layout, channels, residual):
    check_inference(slope, dtype, layout, channels, residual)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(5, 40), (40, 200), (3, 48)], ids=str)
def test_every_channel_has_its_own_slope(native, channels, dtype, layout):
    """Of several panels and slices."""
    check_inference("each", dtype, layout, channels, residual=False)


def check_inference(slope, dtype, layout, channels, residual):
    """Where all activations are the kernel's."""
    given = leaky_inputs(channels, slope, residual)
    tensors = [t if t is None else layout(t.to(dtype)) for t in given]
    ours, theirs = (leaky(function, slope)(*tensors) for function in (conv3x3, plain_leaky))
    exact = leaky(plain_leaky, slope)(*(t if t is None else t.double() for t in tensors))
    assert_close(ours, exact, theirs, "output", tolerance_factor(tensors, dtype))
    assert memory_format(ours) == memory_format(conv3x3(*tensors[:2]))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_slope_of_zero_is_the_relu(backend, activation):
    x, weight, bias, residual = inputs(2, 4, 6, 5, 7, residual=True)
    residual[0, 0, 0, 0] = -float("inf")
    expected = conv3x3(x, weight, bias, residual=residual, relu=True)
    options = {"residual": residual, "activation": activation, "negative_slope": 0.0}
    assert torch.equal(conv3x3(x, weight, bias, **options), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize(
    "slope, last",
    [(0.2, "conv3x3"), (0.0, "conv3x3"), (-0.3, "LeakyRelu"), ("one", "Prelu"), ("each", "Prelu")],
)
@pytest.mark.parametrize("trained", range(5))
def test_what_masks_the_gradient(native, slope, last, trained):
    """The output only where its sign says enough, whichever tensor it is that has a gradient."""
    tensors = leaky_inputs((4, 6), slope, True)
    tensors[min(trained, len(tensors) - 1)].requires_grad_()
    name = type(leaky(conv3x3, slope)(*tensors).grad_fn).__name__
    assert name.startswith(last) or last in name, name


@pytest.mark.parametrize("slope", SLOPES)
def test_gradcheck_of_leaky_activations(backend, slope):
    tensors = [t.requires_grad_() for t in leaky_inputs((3, 4), slope, True)]
    assert torch.autograd.gradcheck(leaky(conv3x3, slope), tensors)


@pytest.mark.parametrize("slope, slopes", [(-0.3, False), (0.0, True)])
def test_an_operator_that_cannot_tell_the_sign_has_no_gradient(slope, slopes):
    x, weight, bias, _ = inputs(1, 4, 6, 3, 3)
    given = rand(6).requires_grad_() if slopes else None
    operator = torch.ops.clsd_fast.conv3x3
    output = operator(x.requires_grad_(), weight, bias, None, 1.0, True, slope, given)
    with pytest.raises(RuntimeError, match="expected negative_slope >= 0 and no slopes"):
        output.sum().backward()


@cover(layout=LAYOUTS, dtype=DTYPES)
def test_expanded_gradient(backend, layout, dtype):
    compare(fused({}), plain, inputs(2, 16, 16, 6, 5), dtype, layout, expanded_grad=True)


@cover(dtype=DTYPES, size=[(6, 5), (17, 14)])
def test_every_input_has_its_own_layout(backend, dtype, size):
    def mixed(function):
        return lambda x, weight, bias, residual: function(
            channels_last(x), sliced(weight), sliced(bias), residual, relu=True
        )

    def ours(x, weight, bias, residual, relu):
        return conv3x3(x, weight, bias, residual=residual, relu=relu)

    tensors = inputs(2, 16, 16, *size, residual=True)
    compare(mixed(ours), mixed(plain), tensors, dtype, sliced)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(backend, dtype):
    compare(fused({}), plain, inputs(0, 8, 8, 4, 4), dtype)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4))[1:])
def test_only_some_inputs_need_a_gradient(backend, needs):
    tensors = [
        t.requires_grad_(n)
        for t, n in zip(inputs(1, 4, 4, 3, 3, residual=True), needs, strict=True)
    ]
    results = []
    for function in (fused({"relu": True}), lambda *t: plain(*t, relu=True)):
        output = function(*tensors)
        wanted = [t for t in tensors if t.requires_grad]
        results.append(torch.autograd.grad(output, wanted, torch.ones_like(output)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_keeps_the_memory_format(backend, layout):
    x, weight, bias, _ = inputs(2, 4, 6, 5, 7)
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(conv3x3(layout(x), weight, bias)) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_gradient_has_the_weights_memory_format(backend, layout):
    x, weight, _, _ = inputs(2, 4, 6, 5, 7)
    backward = torch.ops.clsd_fast.conv3x3_backward
    arguments = (rand(2, 6, 5, 7), x, layout(weight), 1.0, False, True, False)
    grad = backward(*arguments)[1]
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(grad) == expected
    torch.testing.assert_close(grad, clsd_fast.reference.conv3x3_backward(*arguments)[1])


def test_gradcheck(backend):
    tensors = [t.requires_grad_() for t in inputs(2, 3, 4, 3, 4, residual=True)]
    assert torch.autograd.gradcheck(fused({"res_scale": 0.5}), tensors)
    assert torch.autograd.gradcheck(fused({"relu": True}), tensors)


@cover(quick=1, layout=LAYOUTS)
def test_opcheck(layout):
    tensors = [layout(t.float()).detach() for t in inputs(2, 5, 4, 3, 4, residual=True)]
    grad = layout(rand(2, 4, 3, 4).float())
    arguments = (*[t.requires_grad_() for t in tensors], 0.5, True)
    opcheck(torch.ops.clsd_fast.conv3x3, arguments)
    opcheck(torch.ops.clsd_fast.conv3x3, (*arguments, 0.2, None))
    without = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    opcheck(torch.ops.clsd_fast.conv3x3, (*without, 0.0, layout(rand(4).float())))
    backward = torch.ops.clsd_fast.conv3x3_backward
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        opcheck(backward, (grad, *(t.detach() for t in tensors[:2]), 0.5, *needs))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu"])
def test_nan_passes_the_activations(backend, activation):
    x, weight, bias, _ = inputs(1, 4, 4, 3, 3)
    x[0, 0, 1, 1] = float("nan")
    slope = rand(4) if activation == "prelu" else 0.2
    output = conv3x3(x, weight, bias, activation=activation, negative_slope=slope)
    assert output.isnan().all()


@pytest.mark.parametrize("channels", [(16, 16), (3, 16), (16, 3), (5, 7)], ids=str)
def test_an_empty_batch_after_another(native, channels):
    """Its gradients are 0, whatever a call before has left in scratch memory."""
    for batch in (2, 0):
        tensors = inputs(batch, *channels, 17, 14)[:3]
        x, weight, bias = (t.float().requires_grad_() for t in tensors)
        output = conv3x3(x, weight, bias)
        _, *grads = torch.autograd.grad(output, (x, weight, bias), torch.ones_like(output))
    assert not any(grad.any() for grad in grads)
