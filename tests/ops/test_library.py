"""What holds for every operator."""

import pytest
import torch
from support.calls import BACKWARDS, CALLS, FORWARDS
from support.every_operator import (
    ALL_SIZES,
    call,
    check_against_the_reference,
    double_backward_raises,
    no_uninitialised_memory_is_read,
    offsets_beyond_32_bits,
    one_input_alone_gets_its_gradient,
    operator_ids,
    outputs,
)
from support.grids import defer
from torch.utils._pytree import tree_flatten, tree_unflatten

import clsd_fast
from clsd_fast._library import SCHEMAS


def test_public_names():
    assert sorted(clsd_fast.__all__) == [
        "CLSD",
        "CLSDOutput",
        "EDSR",
        "accelerate",
        "conv3x3",
        "distance_ratio_loss",
        "info_nce",
        "losses",
        "nn",
        "ops",
        "pairwise_similarity",
        "pixel_shuffle_upsample",
        "residual_block",
        "residual_blocks",
        "restore",
        "upsample_tail",
        "use_backend",
    ]
    assert all(hasattr(clsd_fast, name) for name in clsd_fast.__all__)


def test_schemas_are_what_saved_programs_call():
    assert SCHEMAS == {
        "conv3x3": "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, float res_scale, "
        "bool relu, float negative_slope=0., Tensor? slopes=None) -> Tensor",
        "conv3x3_backward": "(Tensor grad_output, Tensor x, Tensor weight, float res_scale, "
        "bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
        "conv3x3s": "(Tensor[] xs, Tensor[] weights, Tensor[] biases, Tensor? residual) "
        "-> Tensor[]",
        "conv3x3s_backward": "(Tensor[] grad_outputs, Tensor[] xs, Tensor[] weights, bool needs_x, "
        "bool needs_params, bool needs_residual) -> (Tensor[], Tensor[], Tensor[], Tensor)",
        "residual_block": "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, "
        "Tensor? bias2, float res_scale, bool save_hidden) -> (Tensor, Tensor)",
        "residual_block_backward": "(Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, "
        "Tensor weight2, float res_scale, bool needs_x, bool needs_params) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        "residual_blocks": "(Tensor[] xs, Tensor[] weights1, Tensor[] biases1, Tensor[] weights2, "
        "Tensor[] biases2, float res_scale, int[] kept, bool save_hidden) -> (Tensor[], Tensor[])",
        "residual_blocks_backward": "(Tensor[] grad_maps, int[] at, Tensor[] xs, Tensor[] maps, "
        "Tensor[] hiddens, Tensor[] weights1, Tensor[] weights2, float res_scale, bool needs_x, "
        "bool needs_params) -> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
        "pixel_shuffle_upsample": "(Tensor x, Tensor weight, Tensor? bias, int upscale_factor) "
        "-> Tensor",
        "pixel_shuffle_upsample_backward": "(Tensor grad_output, Tensor x, Tensor weight, "
        "int upscale_factor, bool needs_x, bool needs_weight, bool needs_bias) "
        "-> (Tensor, Tensor, Tensor)",
        "upsample_tail": "(Tensor x, Tensor up_weight1, Tensor? up_bias1, Tensor? up_weight2, "
        "Tensor? up_bias2, Tensor out_weight, Tensor? out_bias, int upscale_factor) "
        "-> (Tensor, Tensor)",
        "upsample_tail_backward": "(Tensor grad_output, Tensor x, Tensor composed, "
        "Tensor up_weight1, Tensor? up_bias1, Tensor? up_weight2, Tensor? up_bias2, "
        "Tensor out_weight, int upscale_factor, bool needs_x, bool needs_params) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        "upsample_tails": "(Tensor[] xs, Tensor[] up_weights1, Tensor[] up_biases1, "
        "Tensor[] up_weights2, Tensor[] up_biases2, Tensor[] out_weights, Tensor[] out_biases, "
        "Tensor? shift_weight, Tensor? shift_bias, "
        "int upscale_factor) -> (Tensor[], Tensor[])",
        "upsample_tails_backward": "(Tensor[] grad_outputs, Tensor[] xs, Tensor[] composed, "
        "Tensor[] up_weights1, Tensor[] up_biases1, Tensor[] up_weights2, Tensor[] up_biases2, "
        "Tensor[] out_weights, Tensor? shift_weight, int upscale_factor, bool needs_x, "
        "bool needs_params) "
        "-> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
        "l1_losses": "(Tensor target, Tensor[] images, float value_range) -> (Tensor, Tensor)",
        "l1_losses_backward": "(Tensor? grad_first, Tensor? grad_others, Tensor target, "
        "Tensor[] images, float value_range) -> Tensor[]",
        "pairwise_similarity": "(Tensor query, Tensor key, str metric) -> Tensor",
        "pairwise_similarity_backward": "(Tensor grad_output, Tensor query, Tensor key, "
        "str metric) -> (Tensor, Tensor)",
        "info_nce": "(Tensor query, Tensor positive_key, Tensor? negative_keys, Tensor? mask, "
        "Tensor? labels, Tensor? learned_temperature, float temperature, str reduction, "
        "bool save_gradients) -> (Tensor, Tensor[])",
        "info_nce_backward": "(Tensor grad_loss, Tensor statistics, Tensor query, "
        "Tensor positive_key, Tensor? negative_keys, Tensor? mask, Tensor? labels, "
        "Tensor? learned_temperature, float temperature, str reduction) -> Tensor[]",
        "distance_ratio_loss": "(Tensor anchor, Tensor positive, Tensor? negatives, float eps) "
        "-> (Tensor, Tensor, Tensor)",
        "distance_ratio_loss_backward": "(Tensor grad_loss, Tensor positive_distance, "
        "Tensor negative_distance, Tensor anchor, Tensor positive, Tensor? negatives, float eps) "
        "-> (Tensor, Tensor, Tensor)",
    }


def test_every_operator_has_its_backward():
    forwards = {name for name in SCHEMAS if not name.endswith("_backward")}
    assert {name.removesuffix("_backward") for name in SCHEMAS} == forwards
    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.clsd_fast, name).default._schema) == f"clsd_fast::{name}" + (
            schema
        )


GRADCHECKED = [
    pytest.param(op, values, id=name)
    for (op, values), name in zip(FORWARDS, operator_ids(FORWARDS), strict=True)
]


@pytest.mark.parametrize("op, values", defer(GRADCHECKED, "upsample_tails None None 4"))
def test_gradcheck_of_operators(op, values):
    def leaf(value):
        differentiable = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.clone().requires_grad_() if differentiable else value

    flat, structure = tree_flatten(list(values))
    leaves = [leaf(value) for value in flat]

    def first_output(*leaves):
        result = getattr(torch.ops.clsd_fast, op)(*tree_unflatten(leaves, structure))
        first = result if isinstance(result, torch.Tensor) else result[0]
        return first if isinstance(first, torch.Tensor) else tuple(first)

    # The tail's Jacobian has a million elements: test_upsample_tail.py compares all gradients.
    fast = op == "upsample_tail"
    assert torch.autograd.gradcheck(first_output, leaves, fast_mode=fast)


@pytest.mark.parametrize("op, values", BACKWARDS, ids=operator_ids(BACKWARDS))
def test_native_backward_equals_the_reference(native, op, values):
    check_against_the_reference(op, values)


@pytest.mark.parametrize("name", ALL_SIZES)
def test_two_runs_are_bit_equal(backend, name):
    for first, second in zip(outputs(name), outputs(name), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ALL_SIZES)
def test_threads_do_not_change_a_bit(native, threads, name):
    threads(1)
    alone = outputs(name)
    for count in (2, 3):
        threads(count)
        for first, second in zip(alone, outputs(name), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALL_SIZES)
def test_no_uninitialised_memory_is_read(backend, name, dtype):
    no_uninitialised_memory_is_read(name, dtype)


@pytest.mark.parametrize("name", CALLS)
def test_double_backward_raises(native, name):
    double_backward_raises(name)


@pytest.mark.parametrize("name", CALLS)
def test_reference_differentiates_twice(name):
    function, tensors = call(name, torch.float64)
    with clsd_fast.use_backend("reference"):
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("name", CALLS)
def test_one_input_alone_gets_its_gradient(backend, name):
    one_input_alone_gets_its_gradient(name)


@pytest.mark.parametrize("name", CALLS)
def test_no_gradient_is_recorded_without_need(backend, name):
    function, make = CALLS[name]
    assert function(*make()).grad_fn is None
    with torch.no_grad():
        assert function(*(t.requires_grad_() for t in make())).grad_fn is None


@pytest.mark.parametrize("name", CALLS)
def test_offsets_beyond_32_bits(native, name):
    offsets_beyond_32_bits(name)
