"""CUDA kernels of 16-bit images with float32 parameters, emulated."""

import pytest
import torch
from support.emulated import check
from support.util import channels_last, contiguous, rand, sliced

DTYPES = (torch.bfloat16, torch.float16)


def images(*shape, dtype, seed=0):
    return channels_last(rand(*shape, seed=seed).to(dtype))


def weights(outputs, inputs, layout=contiguous):
    return layout((rand(outputs, inputs, 3, 3) / (3 * inputs**0.5)).float())


@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, outputs", [(64, 64), (16, 48), (3, 16), (16, 3)])
@pytest.mark.parametrize("sm90a", [False, True])
def test_conv3x3(emulation, sm90a, channels, outputs, dtype, layout):
    emulation.sm90a(sm90a)
    x, grad = images(2, channels, 9, 5, dtype=dtype), images(2, outputs, 9, 5, dtype=dtype)
    weight, bias = weights(outputs, channels, layout), rand(outputs).float()
    check(emulation, "conv3x3", x, weight, bias, grad, 0.5, True)
    grads = check(emulation, "conv3x3_backward", grad, x, weight, 0.5, True, True, True)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("save_hidden", [False, True])
def test_residual_block(emulation, dtype, save_hidden):
    x = images(1, 64, 9, 5, dtype=dtype)
    parameters = (weights(64, 64), rand(64).float(), weights(64, 64), rand(64).float())
    check(emulation, "residual_block", x, *parameters, 0.5, save_hidden)
    hidden, grad = x.relu(), images(1, 64, 9, 5, dtype=dtype, seed=1)
    arguments = (grad, x, hidden, parameters[0], parameters[2], 0.5, True, True)
    grads = check(emulation, "residual_block_backward", *arguments)
    assert [g.dtype for g in grads] == [dtype, *[torch.float32] * 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_upsample(emulation, dtype, factor):
    x, outputs = images(2, 16, 5, 4, dtype=dtype), 16 * factor**2
    weight, bias = weights(outputs, 16), rand(outputs).float()
    check(emulation, "pixel_shuffle_upsample", x, weight, bias, factor)
    grad = images(2, 16, 5 * factor, 4 * factor, dtype=dtype)
    arguments = (grad, x, weight, factor, True, True, True)
    grads = check(emulation, "pixel_shuffle_upsample_backward", *arguments)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]


def test_no_weight_is_copied(emulation):
    """Of any layout: the launch that packs them reads them where they are."""
    x = images(1, 16, 5, 4, dtype=torch.bfloat16)
    for layout in (contiguous, channels_last, sliced):
        weight = weights(16, 16, layout)
        with torch.profiler.profile() as profile:
            emulation.ops.conv3x3(x, weight, None, None, 1.0, False)
        names = {event.key for event in profile.key_averages()}
        assert not names & {"aten::copy_", "aten::to", "aten::_to_copy", "aten::contiguous"}
