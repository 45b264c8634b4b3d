"""16-bit images with float32 parameters, as a training step in mixed precision has them."""

import pytest
import torch
from support.calls import ALGORITHMS, IMAGES
from support.util import (
    channels_last,
    contiguous,
    memory_format,
    rand,
    run,
    tolerance_factor,
)
from tolerance import assert_close

import clsd_fast
from clsd_fast.backend import current_backend

NARROW = (torch.bfloat16, torch.float16)


def is_image(name, index):
    return index == 0 or (name.startswith("conv3x3") and index == 3)


def mixed(name, tensors, dtype, layout=contiguous):
    """The images in dtype, the parameters in float32."""
    return [
        layout(t.to(dtype if is_image(name, index) else torch.float32)).requires_grad_()
        for index, t in enumerate(tensors)
    ]


def hold(name, function, tensors, dtype, layout=contiguous, factor=1.0):
    """Outputs and gradients of the mixed call to the tolerance rule, whose parameters are those of
    the call that rounds all of them."""
    inputs = mixed(name, tensors, dtype, layout)
    with clsd_fast.use_backend("reference"):
        exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
        grad = rand(*function(*exact_inputs).shape, seed=7).to(dtype)
        exact = run(function, exact_inputs, grad.double())
        rounded = [t.detach().to(dtype).requires_grad_() for t in inputs]
        theirs = run(function, rounded, grad)
    ours = run(function, inputs, layout(grad))
    for index, (result, right, other) in enumerate(zip(ours, exact, theirs, strict=True)):
        assert_close(result, right, other.to(result.dtype), f"{name}, result {index}", factor)
    for index, (gradient, tensor) in enumerate(zip(ours[1:], inputs, strict=True)):
        assert gradient.dtype == tensor.dtype, f"gradient {index}"
        if tensor.dim() == 4 and current_backend() == "native":
            assert memory_format(gradient) == memory_format(tensor), f"gradient {index}"


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
# A chain's gradients hang on the signs of rounding errors: test_residual_blocks.py compares it with
# its blocks.
@pytest.mark.parametrize("name", sorted(IMAGES.keys() - {"residual_blocks"}))
def test_every_operator(backend, name, dtype, layout):
    function, make = IMAGES[name]
    hold(name, function, make(), dtype, layout)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(native, algorithm, dtype):
    channels, outputs, *_ = ALGORITHMS[algorithm]
    tensors = [
        rand(2, channels, 17, 13),
        rand(outputs, channels, 3, 3) / (3 * channels**0.5),
        rand(outputs),
    ]
    # The gradients of the parameters are float32.
    factor = tolerance_factor(tensors, torch.float32)
    hold("", clsd_fast.conv3x3, tensors, dtype, factor=factor)


@pytest.mark.parametrize("name", [n for n in IMAGES if not n.startswith("upsample_tail")])
def test_weights_are_rounded(native, name):
    """By all kernels but the composed tail's; biases are added as they are."""
    function, make = IMAGES[name]
    tensors = [t.float() for t in make()]
    rounded = [t.bfloat16() for t in tensors]
    wide = [
        r if is_image(name, i) else (t if t.dim() == 4 else r.float())
        for i, (t, r) in enumerate(zip(tensors, rounded, strict=True))
    ]
    assert torch.equal(function(*wide), function(*rounded))


@pytest.mark.parametrize("name", IMAGES)
def test_autocast_is_the_mixed_call(backend, name):
    function, make = IMAGES[name]
    tensors = [t.float().requires_grad_() for t in make()]
    with torch.autocast("cpu", torch.bfloat16):
        output = function(*tensors)
    assert torch.equal(output, function(*mixed(name, tensors, torch.bfloat16)))


def test_a_gradient_beyond_float16_stays_infinite(backend):
    """A loss scale that is too large has to show."""
    x = torch.full((1, 8, 3, 3), 6e4, dtype=torch.float16, requires_grad=True)
    weight = torch.ones(8, 8, 3, 3, requires_grad=True)
    output = clsd_fast.conv3x3(x, weight)
    (grad,) = torch.autograd.grad(output, x, torch.full_like(output, 6e4))
    assert grad.isinf().any()


def refused(call):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call()
    return str(caught.value)


X, W, B = rand(2, 4, 5, 6).bfloat16(), rand(6, 4, 3, 3), rand(6)


@pytest.mark.parametrize(
    "weight, bias, sentence",
    [
        (W.double(), None, "weight of dtype bfloat16 or float32, got float64"),
        (W.half(), None, "weight of dtype bfloat16 or float32, got float16"),
        (W.float(), B.bfloat16(), "bias of dtype float32, got bfloat16"),
        (W.bfloat16(), B.float(), "bias of dtype bfloat16, got float32"),
    ],
)
def test_mixtures_are_refused_in_one_sentence(native, weight, bias, sentence):
    expected = f"conv3x3: expected {sentence}"
    assert refused(lambda: clsd_fast.conv3x3(X, weight, bias)) == expected
    operator = torch.ops.clsd_fast.conv3x3
    assert refused(lambda: operator(X, weight, bias, None, 1.0, False)).startswith(expected)


def test_wide_images_take_no_narrow_parameters(native):
    expected = "conv3x3: expected weight of dtype float32, got bfloat16"
    assert refused(lambda: clsd_fast.conv3x3(X.float(), W.bfloat16())) == expected


def test_second_parameters_are_like_the_first(native):
    weight, square = W[:4].float(), rand(4, 4, 3, 3).bfloat16()
    expected = "residual_block: expected weight2 of dtype float32, got bfloat16"
    assert refused(lambda: clsd_fast.residual_block(X, weight, None, square, None)) == expected
    expected = "upsample_tail: expected out_weight of dtype float32, got bfloat16"
    tail = (X, [rand(8, 4, 3, 3).float()], [None], rand(3, 2, 3, 3).bfloat16(), None, 2)
    assert refused(lambda: clsd_fast.upsample_tail(*tail)) == expected
