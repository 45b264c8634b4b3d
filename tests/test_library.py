"""What holds for every operator."""

import pytest
import torch
from calls import CALLS
from util import rand

import clsd_fast
from clsd_fast._library import SCHEMAS


def call(name, dtype=torch.float32):
    function, make = CALLS[name]
    return function, [t.to(dtype).requires_grad_() for t in make()]


def outputs(name):
    function, tensors = call(name)
    output = function(*tensors)
    return [output, *torch.autograd.grad(output.sum(), tensors)]


def test_public_names():
    assert sorted(clsd_fast.__all__) == [
        "CLSD",
        "CLSDOutput",
        "EDSR",
        "conv3x3",
        "distance_ratio_loss",
        "info_nce",
        "losses",
        "nn",
        "ops",
        "pairwise_similarity",
        "pixel_shuffle_upsample",
        "residual_block",
        "use_backend",
    ]
    assert all(hasattr(clsd_fast, name) for name in clsd_fast.__all__)


def test_schemas_are_what_saved_programs_call():
    conv = "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, float res_scale, bool relu)"
    assert SCHEMAS["conv3x3"] == f"{conv} -> Tensor"
    block = "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
    assert SCHEMAS["residual_block"] == (
        f"{block}float res_scale, bool save_hidden) -> (Tensor, Tensor)"
    )
    upsample = "(Tensor x, Tensor weight, Tensor? bias, int upscale_factor) -> Tensor"
    assert SCHEMAS["pixel_shuffle_upsample"] == upsample
    pairwise = "(Tensor query, Tensor key, str metric) -> Tensor"
    assert SCHEMAS["pairwise_similarity"] == pairwise
    nce = "(Tensor query, Tensor positive_key, Tensor? negative_keys, float temperature)"
    assert SCHEMAS["info_nce"] == f"{nce} -> (Tensor, Tensor, Tensor)"
    ratio = "(Tensor anchor, Tensor positive, Tensor? negatives, float eps)"
    assert SCHEMAS["distance_ratio_loss"] == f"{ratio} -> (Tensor, Tensor, Tensor)"


def test_every_operator_has_its_backward():
    forwards = {name for name in SCHEMAS if not name.endswith("_backward")}
    assert {name.removesuffix("_backward") for name in SCHEMAS} == forwards
    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.clsd_fast, name).default._schema) == f"clsd_fast::{name}" + (
            schema
        )


@pytest.mark.parametrize("name", CALLS)
def test_two_runs_are_bit_equal(backend, name):
    for first, second in zip(outputs(name), outputs(name), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", CALLS)
def test_threads_do_not_change_a_bit(native, threads, name):
    threads(1)
    alone = outputs(name)
    threads(4)
    for first, second in zip(alone, outputs(name), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("threads_used", [1, 3])
def test_larger_convolution_is_bit_equal_for_any_number_of_threads(native, threads, threads_used):
    x, weight = rand(3, 16, 33, 29).float(), rand(32, 16, 3, 3).float()

    def gradients():
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        output = clsd_fast.conv3x3(*leaves)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    threads(2)
    expected = gradients()
    threads(threads_used)
    for first, second in zip(expected, gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", CALLS)
def test_no_uninitialised_memory_is_read(backend, name):
    torch.use_deterministic_algorithms(True)  # empty() is filled with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        results = outputs(name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("name", CALLS)
def test_double_backward_raises(native, name):
    function, tensors = call(name)
    # Squaring makes the incoming gradient depend on the inputs.
    grads = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first-order gradient, got a double"):
        torch.autograd.grad(grads[0].sum(), tensors)


@pytest.mark.parametrize("name", CALLS)
def test_reference_differentiates_twice(name):
    function, tensors = call(name, torch.float64)
    with clsd_fast.use_backend("reference"):
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("name", CALLS)
def test_no_gradient_is_recorded_without_need(backend, name):
    function, make = CALLS[name]
    assert function(*make()).grad_fn is None
    with torch.no_grad():
        assert function(*(t.requires_grad_() for t in make())).grad_fn is None


def test_offsets_beyond_32_bits(native):
    # 2^31 elements lie between the images of this view; only its two images are ever touched.
    gap = 2**31 + 64
    storage = torch.empty(gap + 4 * 4 * 4)
    x = storage.as_strided((2, 4, 4, 4), (gap, 16, 4, 1))
    x.copy_(rand(2, 4, 4, 4))
    weight = rand(3, 4, 3, 3).float()
    torch.testing.assert_close(
        clsd_fast.conv3x3(x, weight), clsd_fast.conv3x3(x.contiguous(), weight), rtol=0, atol=0
    )
