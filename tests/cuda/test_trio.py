"""The kernel of 64 input channels whose blocks have three tiles, emulated, on a GPU so small that
it is chosen."""

import pytest
import torch
from emulation import SMALL_SHARED_BYTES
from support.calls import EPILOGUES
from support.cuda_convolutions import (
    DTYPES,
    INPUT,
    SLOPES,
    block_operands,
    check_conv3x3,
    check_leaky,
    check_residual_block,
    operands,
)
from support.emulated import SEEDS, caught, check
from support.grids import cover
from support.util import channels_last, rand

#: Multiprocessors, and images: of 3 tiles in a block, of 5 in two, of 7 in three, of 9 tiles each.
GRIDS = [(1, (3, 5, 7)), (2, (5, 8, 16)), (3, (7, 1, 1)), (2, (2, 17, 33))]


def trio(emulation, multiprocessors):
    """The emulation of a GPU on which convolutions of such images take blocks of three tiles."""
    emulation.multiprocessors(multiprocessors)
    return emulation


def image_operands(images, outputs, dtype):
    batch, height, width = images
    return operands(batch, 64, outputs, height, width, dtype)


@pytest.mark.parametrize(
    "multiprocessors, batch, count, is_trio",
    # As many tiles on the busiest multiprocessor as with blocks of one, or more.
    [(1, 3, 1, True), (1, 4, 1, False), (2, 5, 1, True), (2, 4, 1, False), (3, 7, 1, True)]
    + [(16, 3, 1, False), (3, 3, 3, True), (2, 3, 3, False)],
)
def test_when_blocks_have_three_tiles(emulation, multiprocessors, batch, count, is_trio):
    def kernel(channels=64):
        x, weight, bias, _ = operands(batch, channels, 16, 5, 7, torch.bfloat16)
        emulation.ops.conv3x3s([x] * count, [weight] * count, [bias] * count, None)
        return emulation.kernel().split("::")[0]

    emulation.multiprocessors(multiprocessors)
    assert kernel() == ("trio" if is_trio else "sm80")
    assert kernel(channels=80) == kernel(channels=48) == "sm80"
    emulation.block_shared_bytes(SMALL_SHARED_BYTES)
    assert kernel() == "sm80"


@cover(grid=GRIDS, outputs=[64, 16, 48, 80, 256], dtype=DTYPES)
def test_outputs(emulation, grid, outputs, dtype):
    multiprocessors, images = grid
    check_conv3x3(trio(emulation, multiprocessors), *image_operands(images, outputs, dtype))


@cover(grid=GRIDS, epilogue=EPILOGUES, dtype=DTYPES)
def test_epilogues(emulation, grid, epilogue, dtype):
    multiprocessors, images = grid
    bias, residual, relu, res_scale = epilogue
    x, weight, offsets, image = image_operands(images, 64, dtype)
    offsets, skip = offsets if bias else None, image if residual else None
    check(trio(emulation, multiprocessors), "conv3x3", x, weight, offsets, skip, res_scale, relu)
    assert "trio" in emulation.kernel()
    check(emulation, "conv3x3_backward", image, x, weight, res_scale, *INPUT)


@cover(grid=GRIDS, slope=SLOPES, residual=[True, False], dtype=DTYPES)
def test_leaky_activations(emulation, grid, slope, residual, dtype):
    multiprocessors, images = grid
    x, weight, bias, image = image_operands(images, 64, dtype)
    check_leaky(
        trio(emulation, multiprocessors), x, weight, bias, image if residual else None, slope
    )


@cover(grid=GRIDS, dtype=DTYPES)
def test_masks(emulation, grid, dtype):
    multiprocessors, (batch, height, width) = grid
    blocks = block_operands(batch, 64, 64, height, width, dtype)
    check_residual_block(trio(emulation, multiprocessors), *blocks, 0.5, (True, False))


def tapped_chain(batch, height, width, dtype):
    """Arguments of residual_blocks_backward with a gradient after each of two blocks."""
    x, *_, grad = operands(batch, 64, 64, height, width, dtype)
    weights = [channels_last((rand(64, 64, 3, 3, seed=i) / 24).to(dtype)) for i in range(4)]
    maps, hiddens = [channels_last(rand(*x.shape, seed=5).to(dtype))], [x.abs(), grad]
    return [grad, x], [1, 2], [x], maps, hiddens, weights[:2], weights[2:], 0.5, True, False


@cover(grid=GRIDS, dtype=DTYPES)
def test_gradients_at_taps(emulation, grid, dtype):
    multiprocessors, images = grid
    arguments = tapped_chain(*images, dtype)
    check(trio(emulation, multiprocessors), "residual_blocks_backward", *arguments)


@cover(quick=4, seed=SEEDS, grid=GRIDS)
def test_any_order_of_warps(emulation, seed, grid):
    """Bit-equal."""
    multiprocessors, images = grid
    arguments = tapped_chain(*images, torch.bfloat16)
    ops = trio(emulation, multiprocessors).ops
    expected = ops.residual_blocks_backward(*arguments)[0]
    emulation.seed(seed)
    assert torch.equal(ops.residual_blocks_backward(*arguments)[0][0], expected[0])


def test_it_is_bit_equal_to_blocks_of_one_tile(emulation):
    x, weight, bias, image = operands(3, 64, 64, 5, 7, torch.float16)

    def results():
        return emulation.ops.conv3x3(x, weight, bias, image, 0.5, True), emulation.kernel()

    alone, kernel = results()
    assert "sm80" in kernel
    emulation.multiprocessors(1)
    together, kernel = results()
    assert "trio" in kernel
    assert torch.equal(together, alone)


#: Barriers that only keep warps from asking for further slices before others; then there is one for
#: each part that arrives: two of the first slice, three slices, what is added.
ORDERING, PARTS = 4, 5


def faults(residual):
    """What can be left out of a launch."""
    waits = range(PARTS + residual)
    barriers = range(ORDERING, ORDERING + PARTS + residual + 1)
    return [*(("skip_barrier", i) for i in barriers), *(("skip_wait", i) for i in waits)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "residual, skip, index",
    [(residual, *fault) for residual in (False, True) for fault in faults(residual)],
)
def test_every_synchronization_is_needed(emulation, residual, skip, index):
    x, weight, bias, image = operands(12, 64, 64, 8, 16, torch.bfloat16)

    def call():
        return emulation.ops.conv3x3(x, weight, bias, image if residual else None, 1.0, False)

    emulation.multiprocessors(1)
    expected = call()
    getattr(emulation, skip)(index)
    assert any(caught(emulation, call, expected))


@pytest.mark.thorough
@pytest.mark.parametrize("wait", [PARTS + 1, PARTS + 2])
def test_every_wait_for_what_is_added_is_needed(emulation, wait):
    arguments = tapped_chain(12, 8, 16, torch.bfloat16)
    emulation.multiprocessors(1)

    def call():
        return emulation.ops.residual_blocks_backward(*arguments)[0][0]

    expected = call()
    emulation.skip_wait(wait)
    assert any(caught(emulation, call, expected))
