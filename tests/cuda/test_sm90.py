"""The kernels for sm_90a, emulated: cases of the operators' tests with channels that these take.

Convolutions and what is made of them; `test_wgrad` has the gradients of parameters.
"""

import pytest
import torch
from support.calls import EPILOGUES
from support.cuda_convolutions import (
    DTYPES,
    INPUT,
    PARAMETERS,
    SLOPES,
    block_operands,
    check_conv3x3,
    check_leaky,
    check_pixel_shuffle_upsample,
    check_residual_block,
    operands,
)
from support.emulated import SEEDS, caught, check
from support.grids import cover
from support.util import LAYOUTS

#: Of a convolution of 128 input channels, and as many as there are buffers for.
SLICES, BUFFERS = 8, 4


@pytest.fixture
def sm90(emulation):
    """The emulation of a device of compute capability 9.0."""
    emulation.sm90a(True)
    return emulation


@pytest.mark.parametrize(
    "channels, out_channels, namespace",
    [(64, 64, "sm90"), (128, 256, "sm90"), (64, 80, "sm90"), (48, 16, "sm90"), (3, 64, "few")],
)
def test_which_kernel_convolves(sm90, channels, out_channels, namespace):
    x, weight, bias, image = operands(1, channels, out_channels, 3, 4, torch.bfloat16)
    sm90.ops.conv3x3(x, weight, bias, image, 1.0, False)
    assert f"{namespace}::conv3x3" in sm90.kernel()
    sm90.sm90a(False)
    sm90.ops.conv3x3(x, weight, bias, image, 1.0, False)
    assert "sm90" not in sm90.kernel()


@pytest.mark.parametrize(
    "channels, out_channels, namespaces",
    [
        (64, 64, ("wgrad_sm80", "wgrad_sm90")),
        (48, 80, ("wgrad_sm80", "wgrad_sm90")),
        (3, 64, ("wgrad_few", "wgrad_few")),
        (64, 3, ("wgrad_few", "wgrad_few")),
    ],
)
def test_which_kernel_computes_weight_gradients(emulation, channels, out_channels, namespaces):
    x, weight, _, image = operands(1, channels, out_channels, 3, 4, torch.bfloat16)
    for sm90a, namespace in enumerate(namespaces):
        emulation.sm90a(sm90a)
        with emulation.recorded() as launches:
            emulation.ops.conv3x3_backward(image, x, weight, 1.0, *PARAMETERS)
        kernels = [launch.kernel.split("::")[0] for launch, _ in launches]
        assert kernels == [namespace, "wgrad"]


@cover(
    # Around a block's 12 x 24 pixels.
    size=[(1, 1), (1, 6), (9, 1), (5, 7), (12, 24), (13, 25), (17, 49)],
    batch=[1, 2, 3],
    dtype=DTYPES,
)
def test_sizes(sm90, size, batch, dtype):
    check_conv3x3(sm90, *operands(batch, 64, 64, *size, dtype))


@cover(
    quick=2,
    channels=[
        *[(64, 128), (192, 128), (128, 64), (64, 256), (256, 64), (256, 256)],
        # Slices fewer than the buffers, and groups that are not whole.
        *[(16, 16), (32, 80), (48, 64), (80, 48), (144, 112)],
    ],
    dtype=DTYPES,
)
def test_channels(sm90, channels, dtype):
    check_conv3x3(sm90, *operands(1, *channels, 5, 7, dtype))


@cover(quick=1, size=[(50, 49), (48, 48)], dtype=DTYPES)
def test_a_whole_image(sm90, size, dtype):
    check_conv3x3(sm90, *operands(1, 64, 64, *size, dtype))


@cover(quick=2, seed=SEEDS, channels=[(64, 64), (128, 64)])
def test_any_order_of_warps(sm90, seed, channels):
    x, weight, bias, image = operands(2, *channels, 13, 5, torch.bfloat16)
    sm90.seed(seed)
    check_conv3x3(sm90, x, weight, bias, image)


def test_results_do_not_depend_on_the_order_of_warps(sm90):
    x, weight, bias, image = operands(1, 64, 64, 13, 25, torch.float16)
    results = []
    for seed in range(4):
        sm90.seed(seed)
        results.append(sm90.ops.conv3x3(x, weight, bias, image, 0.5, True))
    assert all(torch.equal(result, results[0]) for result in results)


@cover(dtype=DTYPES, epilogue=EPILOGUES)
def test_epilogues(sm90, dtype, epilogue):
    bias, residual, relu, res_scale = epilogue
    x, weight, offsets, image = operands(2, 64, 64, 9, 5, dtype)
    offsets, skip = offsets if bias else None, image if residual else None
    check(sm90, "conv3x3", x, weight, offsets, skip, res_scale, relu)
    check(sm90, "conv3x3_backward", image, x, weight, res_scale, *INPUT)


@cover(channels=[(64, 64), (32, 80)], slope=SLOPES, dtype=DTYPES, residual=[True, False])
def test_leaky_activations(sm90, channels, slope, dtype, residual):
    x, weight, bias, image = operands(2, *channels, 9, 5, dtype)
    check_leaky(sm90, x, weight, bias, image if residual else None, slope)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(sm90, layout):
    check_conv3x3(sm90, *operands(2, 64, 64, 6, 5, torch.bfloat16, layout))


@cover(factor=[1, 2, 3], size=[(13, 17), (1, 1)], out_channels=[64, 128], dtype=DTYPES)
def test_pixel_shuffle_upsample(sm90, dtype, size, factor, out_channels):
    check_pixel_shuffle_upsample(sm90, 2, 64, out_channels, size, factor, dtype)


@cover(
    size=[(13, 17), (1, 6), (1, 1)],
    hidden_channels=[64, 128],
    dtype=DTYPES,
    res_scale=[0.1, 1.0],
)
def test_residual_block(sm90, dtype, size, hidden_channels, res_scale):
    tensors = block_operands(2, 64, hidden_channels, *size, dtype)
    check_residual_block(sm90, *tensors, res_scale)


def faults(slices, residual):
    """What can be left out of a launch: of each slice's, of what is added, and of the results'."""
    waits = slices + residual
    if slices == BUFFERS:
        # The first ones only keep warps from asking for further slices before others.
        barriers = range(BUFFERS, BUFFERS + waits + 1)
    else:  # those of later slices have followed what is added
        barriers = [i for i in range(waits + 1) if not residual or i != slices]
    # Products are waited for before a slice is loaded where they read another; none follows the
    # last two.
    products = [*range(2, slices - 2), slices] if slices > BUFFERS else [0]
    return [
        *(("skip_barrier", i) for i in barriers),
        *(("skip_wait", i) for i in range(waits)),
        *(("skip_proxy_fence", i) for i in range(slices)),
        *(("skip_product_wait", i) for i in products),
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "slices, residual, skip, index",
    [
        (slices, residual, *fault)
        for slices in (BUFFERS, SLICES)
        for residual in (False, True)
        for fault in faults(slices, residual)
    ],
)
def test_every_synchronization_is_needed(sm90, slices, residual, skip, index):
    # Rows of both warpgroups, and many blocks: that a warp lags just where it matters is rare.
    x, weight, bias, image = operands(16, 16 * slices, 64, 9, 9, torch.bfloat16)

    def call():
        return sm90.ops.conv3x3(x, weight, bias, image if residual else None, 1.0, False)

    expected = call()
    getattr(sm90, skip)(index)
    assert any(caught(sm90, call, expected))
