"""residual_block's CUDA kernels, emulated."""

import pytest
import torch
from support.emulated import check
from support.util import LAYOUTS, channels_last, rand
from test_cuda_emulation import caught

DTYPES = (torch.bfloat16, torch.float16)


def operands(batch, channels, hidden_channels, height, width, dtype, layout=channels_last):
    """grad_output, x, weight1, bias1, weight2, bias2."""
    tensors = [
        rand(batch, channels, height, width, seed=1),
        rand(batch, channels, height, width),
        rand(hidden_channels, channels, 3, 3) / (3 * channels**0.5),
        rand(hidden_channels),
        rand(channels, hidden_channels, 3, 3, seed=1) / (3 * hidden_channels**0.5),
        rand(channels, seed=1),
    ]
    return [layout(t.to(dtype)) for t in tensors]


def check_both(emulation, grad, x, weight1, bias1, weight2, bias2, res_scale, needs=(True, True)):
    arguments = (x, weight1, bias1, weight2, bias2, res_scale)
    _, hidden = check(emulation, "residual_block", *arguments, True)
    check(emulation, "residual_block", *arguments, False)
    arguments = (grad, x, hidden, weight1, weight2, res_scale, *needs)
    check(emulation, "residual_block_backward", *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 17)], ids=str)
@pytest.mark.parametrize("channels, hidden_channels", [(64, 64), (16, 48), (3, 16)])
@pytest.mark.parametrize("res_scale", [1.0, 0.1])
def test_sizes_and_channels(emulation, dtype, size, channels, hidden_channels, res_scale):
    check_both(emulation, *operands(2, channels, hidden_channels, *size, dtype), res_scale)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    check_both(emulation, *operands(3, 16, 16, 6, 5, torch.bfloat16, layout), 0.5)


@pytest.mark.parametrize("seed", range(16))
def test_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    check_both(emulation, *operands(1, 32, 32, 9, 5, torch.bfloat16), 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (8, 16), (9, 17), (24, 49)], ids=str)
def test_one_kernel_without_gradients(emulation, dtype, size):
    """Where all blocks run at once, on the emulation's 16 multiprocessors."""
    _, *arguments = operands(1, 64, 64, *size, dtype)
    check(emulation, "residual_block", *arguments, 0.1, False)
    assert "residual_block_kernel" in emulation.kernel()


@pytest.mark.parametrize("seed", range(16))
def test_one_kernel_in_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    _, *arguments = operands(2, 64, 64, 9, 5, torch.bfloat16)
    check(emulation, "residual_block", *arguments, 0.5, False)


@pytest.mark.parametrize(
    "change", [{"batch": 17}, {"hidden_channels": 128}, {"save_hidden": True}, {"sm90a": True}]
)
def test_two_kernels(emulation, change):
    """For more blocks, other channels, gradients, and where warpgroup products are faster."""
    sizes = {"batch": 1, "channels": 64, "hidden_channels": 64, "height": 1, "width": 2} | {
        name: value for name, value in change.items() if name.endswith(("batch", "channels"))
    }
    emulation.sm90a(change.get("sm90a", False))
    _, *arguments = operands(**sizes, dtype=torch.float16)
    check(emulation, "residual_block", *arguments, 1.0, change.get("save_hidden", False))
    assert "conv3x3_kernel" in emulation.kernel()


@pytest.mark.parametrize(
    "skip, index",
    [("skip_barrier", i) for i in range(2 * 9 + 1)] + [("skip_wait", i) for i in range(2 * 9)],
)
def test_every_synchronization_of_one_kernel_is_needed(emulation, skip, index):
    _, *arguments = operands(1, 64, 64, 8, 9, torch.bfloat16)

    def call():
        return emulation.ops.residual_block(*arguments, 1.0, False)[0]

    expected = call()
    getattr(emulation, skip)(index)
    assert any(caught(emulation, call, expected))


def test_without_bias(emulation):
    grad, x, weight1, _, weight2, _ = operands(1, 16, 16, 6, 5, torch.float16)
    check_both(emulation, grad, x, weight1, None, weight2, None, 1.0)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_only_some_gradients_are_asked_for(emulation, needs):
    grad, x, weight1, _, weight2, _ = operands(1, 16, 48, 6, 5, torch.bfloat16)
    _, hidden = emulation.ops.residual_block(x, weight1, None, weight2, None, 1.0, True)
    arguments = (grad, x, hidden, weight1, weight2, 0.5, *needs)
    grads = check(emulation, "residual_block_backward", *arguments)
    needed = (needs[0], *[needs[1]] * 4)
    assert [bool(grad.numel()) for grad in grads] == list(needed)


def test_empty_batch(emulation):
    check_both(emulation, *operands(0, 16, 16, 6, 5, torch.float16), 1.0)
