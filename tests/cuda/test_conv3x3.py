"""conv3x3's CUDA kernels, emulated."""

import pytest
import torch
from support.calls import EPILOGUES
from support.cuda_convolutions import (
    DTYPES,
    INPUT,
    SLOPES,
    check_conv3x3,
    check_leaky,
    operands,
)
from support.emulated import SEEDS, check
from support.grids import cover
from support.util import LAYOUTS, channels_last, contiguous, memory_format


@cover(
    size=[(1, 1), (1, 6), (9, 1), (5, 7), (8, 16), (9, 17), (17, 33)],
    batch_and_channels=[(1, 16, 48), (2, 3, 16), (3, 16, 3)],
    dtype=DTYPES,
)
def test_sizes(emulation, size, batch_and_channels, dtype):
    check_conv3x3(emulation, *operands(*batch_and_channels, *size, dtype))


@cover(
    quick=6,
    channels=[(64, 64), (80, 32), (3, 64), (64, 3), (144, 16), (2, 80), (144, 2), (1, 16), (16, 1)]
    + [(16, 16), (32, 80), (48, 112), (128, 64), (256, 64), (64, 256)],
    dtype=DTYPES,
)
def test_channels(emulation, channels, dtype):
    check_conv3x3(emulation, *operands(1, *channels, 5, 7, dtype))


@cover(
    quick=1,
    image=[(64, 64, 50, 49), (3, 64, 50, 49), (64, 3, 50, 49), (64, 64, 48, 48)],
    dtype=DTYPES,
)
def test_a_whole_image(emulation, image, dtype):
    check_conv3x3(emulation, *operands(1, *image, dtype))


@cover(quick=4, seed=SEEDS, channels=[(64, 64), (80, 80), (3, 64), (64, 3)])
def test_any_order_of_warps(emulation, seed, channels):
    x, weight, bias, image = operands(2, *channels, 9, 5, torch.bfloat16)
    emulation.seed(seed)
    check_conv3x3(emulation, x, weight, bias, image)


@cover(
    channels=[(64, 48), (3, 16), (16, 3)],
    dtype=DTYPES,
    epilogue=EPILOGUES,
)
def test_epilogues(emulation, channels, dtype, epilogue):
    bias, residual, relu, res_scale = epilogue
    x, weight, offsets, image = operands(2, *channels, 9, 5, dtype)
    offsets, skip = offsets if bias else None, image if residual else None
    check(emulation, "conv3x3", x, weight, offsets, skip, res_scale, relu)
    check(emulation, "conv3x3_backward", image, x, weight, res_scale, *INPUT)


@cover(
    channels=[(64, 48), (16, 80), (3, 16), (16, 3)],
    slope=SLOPES,
    dtype=DTYPES,
    residual=[True, False],
)
def test_leaky_activations(emulation, channels, slope, dtype, residual):
    x, weight, bias, image = operands(2, *channels, 9, 5, dtype)
    check_leaky(emulation, x, weight, bias, image if residual else None, slope)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    x, weight, bias, image = operands(2, 16, 32, 6, 5, torch.bfloat16, layout)
    (output,) = check(emulation, "conv3x3", x, weight, bias, image, 1.0, True)
    grad_x = check(emulation, "conv3x3_backward", image, x, weight, 1.0, *INPUT)[0]
    expected = "channels_last" if layout is channels_last else "contiguous"
    assert memory_format(output) == memory_format(grad_x) == expected


def test_every_input_has_its_own_layout(emulation):
    x, weight, bias, image = operands(2, 16, 32, 6, 5, torch.bfloat16, contiguous)
    expanded = image[:1, :1, :1, :1].expand(image.shape)
    check(emulation, "conv3x3", channels_last(x), weight, bias[:1].expand(32), expanded, 1.0, True)
    check(emulation, "conv3x3_backward", expanded, x, weight, 1.0, *INPUT)


def test_memory_not_aligned_to_16_bytes(emulation):
    x, weight, bias, image = operands(2, 16, 32, 6, 5, torch.bfloat16)

    def moved(tensor):
        buffer = tensor.new_empty(tensor.numel() + 1)[1:]
        return buffer.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    check(emulation, "conv3x3", *map(moved, (x, weight, bias, image)), 1.0, False)
    grads = (moved(image), moved(x), moved(weight))
    check(emulation, "conv3x3_backward", *grads, 1.0, *INPUT)


def test_empty_batch(emulation):
    check_conv3x3(emulation, *operands(0, 16, 16, 4, 4, torch.bfloat16))


def test_nothing_is_asked_for(emulation):
    x, weight, _, image = operands(1, 16, 16, 4, 4, torch.bfloat16)
    grads = emulation.ops.conv3x3_backward(image, x, weight, 1.0, False, False, False)
    assert [grad.shape for grad in grads] == [(0,)] * 3


def test_results_do_not_depend_on_the_order_of_warps(emulation):
    x, weight, bias, image = operands(1, 80, 80, 9, 17, torch.float16)
    results = []
    for seed in range(4):
        emulation.seed(seed)
        results.append(emulation.ops.conv3x3(x, weight, bias, image, 0.5, True))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_nan_passes_the_activations(emulation, slope):
    x, weight, bias, _ = operands(1, 16, 16, 3, 3, torch.bfloat16)
    x[0, 0, 1, 1] = float("nan")
    assert emulation.ops.conv3x3(x, weight, bias, None, 1.0, True, slope, None).isnan().all()


def several(count, channels, size, dtype, layout=channels_last):
    """xs, weights and biases, no two alike, and images of the outputs' shape."""
    tensors = [operands(2, *channels, *size, dtype, layout) for _ in range(count)]
    for number, of_one in enumerate(tensors, start=1):
        for tensor in of_one:
            tensor.mul_(number)
    return list(map(list, zip(*tensors, strict=True)))


@cover(
    sm90a=[False, True],
    count=[1, 2, 3, 4],
    channels=[(16, 48), (64, 64), (80, 16), (3, 16), (16, 3)],
    size=[(1, 1), (5, 7), (9, 17), (13, 25)],
    dtype=DTYPES,
    layout=LAYOUTS,
    skip=[True, False],
)
def test_several(emulation, sm90a, count, channels, size, dtype, layout, skip):
    emulation.sm90a(sm90a)
    xs, weights, biases, images = several(count, channels, size, dtype, layout)
    check(emulation, "conv3x3s", xs, weights, biases, images[0] if skip else None)
    check(emulation, "conv3x3s_backward", images, xs, weights, True, True, skip)


@cover(sm90a=[False, True], channels=[(64, 64), (3, 16), (16, 3)], count=[3, 9])
def test_each_of_several_is_that_convolution_alone(emulation, sm90a, channels, count):
    """Bit-equal, more of them than a launch takes, too."""
    emulation.sm90a(sm90a)
    xs, weights, biases, images = several(count, channels, (5, 9), torch.bfloat16)
    outputs = emulation.ops.conv3x3s(xs, weights, biases, images[0])
    grads = emulation.ops.conv3x3s_backward(images, xs, weights, True, False, False)[0]
    for x, weight, bias, image, output, grad in zip(
        xs, weights, biases, images, outputs, grads, strict=True
    ):
        alone = emulation.ops.conv3x3(x, weight, bias, images[0], 1.0, False)
        grad_alone = emulation.ops.conv3x3_backward(image, x, weight, 1.0, *INPUT)[0]
        assert torch.equal(output, alone) and torch.equal(grad, grad_alone)


def test_the_residual_of_too_many(emulation):
    xs, weights, _, images = several(9, (16, 16), (3, 3), torch.bfloat16)
    with pytest.raises(RuntimeError, match="conv3x3s_backward: expected at most 8 convolutions"):
        emulation.ops.conv3x3s_backward(images, xs, weights, False, False, True)


def test_launches_of_several(emulation):
    """As many as of one, but that which sums the residual's gradient up."""
    xs, weights, biases, images = several(4, (64, 64), (8, 8), torch.bfloat16)
    with emulation.recorded(runs=False) as launches:
        emulation.ops.conv3x3s(xs, weights, biases, images[0])
        emulation.ops.conv3x3s_backward(images, xs, weights, True, True, True)
    kernels = [launch.kernel.split("<")[0] for launch, _ in launches]
    convolution = ["pack_kernel", "sm80::conv3x3_kernel"]
    wgrad = ["wgrad_sm80::wgrad_kernel", "wgrad::wgrad_reduce_kernel"]
    assert kernels == [*convolution, *convolution, *wgrad, "sum_kernel"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda x, w, b, i: (x[0], w, b, i), "x of shape [N, C, H, W] with C, H, W >= 1, got "),
        (
            lambda x, w, b, i: (x, w[:, :8], b, i),
            "weight of shape [K, 16, 3, 3], got [32, 8, 3, 3]",
        ),
        (lambda x, w, b, i: (x, w, b[:5], i), "bias of shape [32], got [5]"),
        (lambda x, w, b, i: (x, w, b, i[:1]), "residual of shape [2, 32, 6, 5], got "),
        (
            lambda x, w, b, i: (x, w.double(), b, i),
            "weight of dtype bfloat16 or float32, got float64",
        ),
        (
            lambda x, w, b, i: (x.float(), w.float(), b.float(), i.float()),
            "x of dtype bfloat16 or float16 for its CUDA kernel, got float32",
        ),
        (
            lambda x, w, b, i: (x, w[:24], b[:24], i[:, :24]),
            "channels in multiples of 16 up to 256, or up to 3 on one side, for its CUDA kernel, "
            "got weight of shape [24, 16, 3, 3]",
        ),
    ],
)
def test_errors(emulation, change, sentence):
    arguments = change(*operands(2, 16, 32, 6, 5, torch.bfloat16))
    with pytest.raises(RuntimeError) as caught:
        emulation.ops.conv3x3(*arguments, 1.0, False)
    assert str(caught.value).startswith(f"conv3x3: expected {sentence}")
