"""residual_block's CUDA kernels, emulated."""

import pytest
import torch
from support.cuda_convolutions import DTYPES, block_operands, check_residual_block
from support.emulated import SEEDS, caught, check
from support.grids import cover
from support.util import LAYOUTS


@cover(
    size=[(9, 17), (1, 6), (1, 1)],
    channels=[(64, 64), (16, 48), (3, 16)],
    dtype=DTYPES,
    res_scale=[0.1, 1.0],
)
def test_sizes_and_channels(emulation, size, channels, dtype, res_scale):
    tensors = block_operands(2, *channels, *size, dtype)
    check_residual_block(emulation, *tensors, res_scale)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    check_residual_block(emulation, *block_operands(3, 16, 16, 6, 5, torch.bfloat16, layout), 0.5)


@cover(quick=2, seed=SEEDS)
def test_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    check_residual_block(emulation, *block_operands(1, 32, 32, 9, 5, torch.bfloat16), 0.5)


@cover(size=[(1, 1), (8, 16), (9, 17), (24, 49)], dtype=DTYPES)
def test_one_kernel_without_gradients(emulation, dtype, size):
    """Where all blocks run at once, on the emulation's 16 multiprocessors."""
    _, *arguments = block_operands(1, 64, 64, *size, dtype)
    check(emulation, "residual_block", *arguments, 0.1, False)
    assert "residual_block_kernel" in emulation.kernel()


@cover(quick=2, seed=SEEDS)
def test_one_kernel_in_any_order_of_warps(emulation, seed):
    emulation.seed(seed)
    _, *arguments = block_operands(2, 64, 64, 9, 5, torch.bfloat16)
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
    _, *arguments = block_operands(**sizes, dtype=torch.float16)
    check(emulation, "residual_block", *arguments, 1.0, change.get("save_hidden", False))
    assert "conv3x3_kernel" in emulation.kernel()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "skip, index",
    [("skip_barrier", i) for i in range(2 * 4 + 1)] + [("skip_wait", i) for i in range(2 * 4)],
)
def test_every_synchronization_of_one_kernel_is_needed(emulation, skip, index):
    _, *arguments = block_operands(1, 64, 64, 8, 9, torch.bfloat16)

    def call():
        return emulation.ops.residual_block(*arguments, 1.0, False)[0]

    expected = call()
    getattr(emulation, skip)(index)
    assert any(caught(emulation, call, expected))


def test_without_bias(emulation):
    grad, x, weight1, _, weight2, _ = block_operands(1, 16, 16, 6, 5, torch.float16)
    check_residual_block(emulation, grad, x, weight1, None, weight2, None, 1.0)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_only_some_gradients_are_asked_for(emulation, needs):
    grad, x, weight1, _, weight2, _ = block_operands(1, 16, 48, 6, 5, torch.bfloat16)
    _, hidden = emulation.ops.residual_block(x, weight1, None, weight2, None, 1.0, True)
    arguments = (grad, x, hidden, weight1, weight2, 0.5, *needs)
    grads = check(emulation, "residual_block_backward", *arguments)
    needed = (needs[0], *[needs[1]] * 4)
    assert [bool(grad.numel()) for grad in grads] == list(needed)


def test_empty_batch(emulation):
    check_residual_block(emulation, *block_operands(0, 16, 16, 6, 5, torch.float16), 1.0)
