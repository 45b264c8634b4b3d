"""The CUDA operators on a GPU, at the sizes of training, against float64."""

import os
import shutil
from functools import partial

import pytest
import torch
from support.cuda_cases import (
    CONVOLUTIONS,
    DTYPES,
    MARKS,
    ON_GPU,
    OTHERS,
    SMALL,
    TRAINING,
    assert_equal,
    calls,
    outputs,
    require,
    tensors_of,
)
from support.emulated import check
from support.util import LAYOUTS, channels_last, compare, rand
from tolerance import assert_close
from torch.library import opcheck

import clsd_fast
from clsd_fast import reference
from clsd_fast.backend import implementation
from clsd_fast.backend import native as native_backend

pytestmark = MARKS


@pytest.fixture(autouse=True)
def poisoned():
    """What a kernel does not write of its outputs is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def check_all(case, dtype, layout=channels_last):
    require(case.op)
    for op, arguments in calls(case, dtype, layout):
        check(ON_GPU, op, *arguments)


def test_every_convolution_is_native():
    """A GPU's tests are worth nothing on another implementation."""
    has_nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if not has_nvcc and not native_backend.CUDA_LIBRARY.exists():
        pytest.skip("needs nvcc, or a _C_cuda.so that was built elsewhere")
    assert native_backend.cuda_missing is None
    assert set(CONVOLUTIONS) <= native_backend.cuda_operators


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small(case, dtype):
    """compute-sanitizer runs these (`make gpu-memcheck`)."""
    check_all(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TRAINING + OTHERS, ids=str)
def test_values(case, dtype):
    check_all(case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_layouts(case, layout):
    check_all(case, torch.bfloat16, layout)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_empty_batch(op):
    (case,) = [case for case in SMALL if case.op == op][:1]
    check_all(case._replace(shape=(0, *case.shape[1:])), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in TRAINING if c.op != "residual_block"], ids=str)
def test_gradients_are_adjoint(case, dtype):
    """<A x, g> = <x, A^T g>, and the same with the weight: a check that knows no convolution.

    Each side is a sum of products of which one factor was rounded, so that the sides differ by a
    random walk of the roundings. The bound is seven of its standard deviations.
    """
    require(case.op)
    (op, (x, weight, *_)), *_, (backward, (grad, *arguments)) = calls(case, dtype)
    plain = (None, None, 1.0, False) if op == "conv3x3" else (None, case.factor)
    options = (1.0,) if op == "conv3x3" else (case.factor,)
    y = getattr(torch.ops.clsd_fast, op)(x, weight, *plain)
    backward = getattr(torch.ops.clsd_fast, backward)
    grad_x, grad_weight, _ = backward(grad, x, weight, *options, True, True, False)
    pairs = (y, grad), (x, grad_x), (weight, grad_weight)
    products = [a.double() * b.double() for a, b in pairs]
    sums = torch.stack([product.sum() for product in products])
    scale = torch.stack([product.norm() for product in products]).norm()
    assert (sums - sums[0]).abs().max() <= torch.finfo(dtype).eps * scale


OPTIONS = {
    "conv3x3": lambda case: {"res_scale": 0.5},
    "residual_block": lambda case: {"res_scale": 0.5},
    "pixel_shuffle_upsample": lambda case: {"upscale_factor": case.factor},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_public_functions_and_autograd(case, dtype):
    require(case.op)
    options = OPTIONS[case.op](case)
    ours = partial(getattr(clsd_fast, case.op), **options)
    plain = partial(getattr(reference, case.op), **options)
    tensors = [tensor.double() for tensor in tensors_of(calls(case, dtype)[:1])]
    with clsd_fast.use_backend("native"):
        compare(ours, plain, tensors, dtype, channels_last)


@pytest.mark.parametrize("case", SMALL[:1] + SMALL[-2:], ids=str)
def test_operators(case):
    require(case.op)
    (op, arguments), *_, (backward, backward_arguments) = calls(case)
    opcheck(getattr(torch.ops.clsd_fast, backward), backward_arguments)
    for tensor in tensors_of([(op, arguments)]):
        tensor.requires_grad_()
    opcheck(getattr(torch.ops.clsd_fast, op), arguments)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_two_runs_are_bit_equal(case):
    require(case.op)
    given = calls(case)
    assert_equal(outputs(given), outputs(given))


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_current_stream(case):
    """The inputs are written late, on the same stream: a kernel on another would not see them."""
    require(case.op)
    given = calls(case)
    expected = outputs(given)
    tensors = tensors_of(given)
    values = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    large = rand(4096, 4096).to("cuda", torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):  # some tens of milliseconds
            large @ large
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
        results = outputs(given)
    torch.cuda.synchronize()
    assert_equal(results, expected)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_cuda_graph(case):
    """Replayed on new values in the same memory, a capture gives what the operators give."""
    require(case.op)
    given = calls(case)
    outputs(given)  # loads the kernels, which a capture does not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs(given)
    for tensor in tensors_of(given):
        tensor.mul_(0.75)
    for _ in range(2):
        graph.replay()
    assert_equal(captured, outputs(given))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_device(case):
    require(case.op)
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    for op, arguments in calls(case):
        there = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in arguments]
        with torch.cuda.device(0):
            results = check(ON_GPU, op, *there)
        assert all(result.device.index == 1 for result in results)


#: Of an image of 64 channels that has more than 2^31 elements.
LARGE_SIDE = 5824
#: Rows at its end that are compared.
LAST = 16


@pytest.fixture
def large_image():
    """x [1, 64, H, W] in bfloat16 beyond 2^31 elements: only its last rows are not zero."""
    require("conv3x3")
    bytes_needed = 6 * 2 * 64 * LARGE_SIDE**2
    if torch.cuda.mem_get_info()[0] < bytes_needed:
        pytest.skip(f"needs {bytes_needed / 2**30:.0f} GiB of free GPU memory")
    x = torch.zeros(1, LARGE_SIDE, LARGE_SIDE, 64, device="cuda", dtype=torch.bfloat16)
    x = x.permute(0, 3, 1, 2)
    x[..., -2 * LAST :, :].normal_()
    yield x
    torch.cuda.empty_cache()


def test_offsets_beyond_31_bits(large_image):
    """The end of a large image: values, and the gradients of images and weights."""
    x, end = large_image, large_image[..., -2 * LAST :, :].contiguous()
    assert x.numel() > 2**31
    (_, (_, weight, bias, *_)), *_ = calls(TRAINING[0])

    def results(ops, x, weight, bias):
        y = ops.conv3x3(x, weight, bias, None, 1.0, False)[..., -LAST:, :].clone()
        grad_x, grad_weight, _ = ops.conv3x3_backward(x, x, weight, 1.0, True, True, False)
        return y, grad_x[..., -LAST:, :], grad_weight

    ours = results(torch.ops.clsd_fast, x, weight, bias)
    exact = results(reference, end.double(), weight.double(), bias.double())
    theirs = results(reference, end, weight, bias)
    for name, *result in zip(("y", "grad_x", "grad_weight"), ours, exact, theirs, strict=True):
        assert_close(*result, name)


def test_calls_go_where_they_are_served():
    """16-bit calls to our kernels; float32, and channels that none takes, to cuDNN."""
    require("conv3x3")

    def where(dtype, channels):
        x = torch.empty(1, channels, 8, 8, device="cuda", dtype=dtype)
        return implementation("conv3x3", x, x.new_empty(channels, channels, 3, 3))

    assert where(torch.bfloat16, 64) == where(torch.float16, 16) == "native"
    assert where(torch.float32, 64) == where(torch.float64, 64) == "reference"
    assert where(torch.bfloat16, 24) == where(torch.bfloat16, 272) == "reference"
    with (
        clsd_fast.use_backend("native"),
        pytest.raises(RuntimeError, match="bfloat16 or float16 for its CUDA kernel, got float32"),
    ):
        where(torch.float32, 64)


def test_float32_is_pytorch_s_own_result():
    tensors = [tensor.float() for tensor in tensors_of(calls(TRAINING[0])[:1])]
    ours = clsd_fast.conv3x3(*tensors)
    assert torch.equal(ours, reference.conv3x3(*tensors, None, 1.0, False))
