"""The CUDA kernels of a convolution's parameter gradients, emulated."""

import itertools

import pytest
import torch
from support.cuda_convolutions import DTYPES, PARAMETERS, check_parameters, operands
from support.emulated import SEEDS, caught
from support.grids import cover
from support.util import LAYOUTS, channels_last, contiguous, rand

#: Many channels have a kernel of their own on sm_90a.
SM90A = (False, True)


@cover(
    # Around tiles of 8 x 16 pixels.
    size=[(1, 1), (1, 6), (9, 1), (5, 7), (4, 16), (8, 16), (9, 17), (17, 33)],
    batch_and_channels=[(1, 16, 48), (2, 3, 16), (3, 16, 3)],
    dtype=DTYPES,
    sm90a=SM90A,
)
def test_sizes(emulation, size, batch_and_channels, dtype, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(*batch_and_channels, *size, dtype)
    check_parameters(emulation, x, weight, image)


@cover(
    quick=6,
    channels=[(64, 64), (80, 32), (3, 64), (64, 3), (144, 16), (2, 80), (144, 2), (1, 16), (16, 1)]
    + [(16, 16), (32, 80), (48, 112), (256, 64), (64, 256), (256, 3), (3, 256)],
    dtype=DTYPES,
    sm90a=SM90A,
)
def test_channels(emulation, channels, dtype, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(3, *channels, 5, 7, dtype)
    check_parameters(emulation, x, weight, image, 0.3)


@cover(quick=2, sm90a=SM90A, channels=[(64, 64), (3, 64), (64, 3)], dtype=DTYPES)
def test_a_whole_image(emulation, sm90a, channels, dtype):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(1, *channels, 50, 49, dtype)
    check_parameters(emulation, x, weight, image)


@cover(quick=2, batch=[1, 2, 3], multiprocessors=[16, 82, 132], sm90a=SM90A)
def test_more_rows_than_blocks(emulation, batch, multiprocessors, sm90a):
    """Blocks sum several tiles, end within swaths, and the last has fewer."""
    emulation.sm90a(sm90a)
    emulation.multiprocessors(multiprocessors)
    x, weight, _, image = operands(batch, 16, 16, 250, 37, torch.bfloat16)
    check_parameters(emulation, x, weight, image)


@cover(quick=4, seed=SEEDS, channels=[(64, 64), (80, 16), (3, 64), (64, 3)], sm90a=SM90A)
def test_any_order_of_warps(emulation, seed, channels, sm90a):
    emulation.sm90a(sm90a)
    emulation.multiprocessors(2)
    x, weight, _, image = operands(3, *channels, 9, 5, torch.bfloat16)
    emulation.seed(seed)
    check_parameters(emulation, x, weight, image)


@cover(channels=[(64, 80), (3, 80), (80, 3)], sm90a=SM90A)
def test_results_do_not_depend_on_the_order_of_warps(emulation, channels, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(3, *channels, 9, 17, torch.float16)
    results = []
    for seed in range(4):
        emulation.seed(seed)
        results.append(emulation.ops.conv3x3_backward(image, x, weight, 0.5, *PARAMETERS))
    for _, *grads in results:
        assert all(map(torch.equal, grads, results[0][1:]))


@pytest.mark.parametrize("sm90a", SM90A)
def test_grouped_convolutions_are_those_alone(emulation, sm90a):
    """A launch of two convolutions gives what two launches give, where pixels are cut alike."""
    emulation.sm90a(sm90a)
    grad, x = (channels_last(rand(2, 64, 9, 17, seed=i).bfloat16()) for i in range(2))
    weights = [rand(64, 64, 3, 3, seed=i).bfloat16() / 24 for i in range(2)]
    _, hidden = emulation.ops.residual_block(x, weights[0], None, weights[1], None, 1.0, True)
    emulation.multiprocessors(8)
    grads = emulation.ops.residual_block_backward(grad, x, hidden, *weights, 0.5, False, True)
    emulation.multiprocessors(4)
    alone = emulation.ops.conv3x3_backward(grad, hidden, weights[1], 0.5, *PARAMETERS)
    assert all(map(torch.equal, grads[3:], alone[1:]))


@cover(
    needs=list(itertools.product([False, True], repeat=3)),
    channels=[(80, 80), (3, 80), (80, 3)],
    sm90a=SM90A,
)
def test_only_some_gradients_are_asked_for(emulation, channels, needs, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(1, *channels, 6, 5, torch.bfloat16)
    grads = check_parameters(emulation, x, weight, image, 0.5, needs)
    assert [bool(grad.numel()) for grad in grads] == list(needs)


@cover(layout=LAYOUTS, channels=[(16, 32), (3, 16), (16, 3)], sm90a=SM90A)
def test_layouts(emulation, channels, layout, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(2, *channels, 6, 5, torch.bfloat16, layout)
    check_parameters(emulation, x, weight, image)
    check_parameters(emulation, contiguous(x), channels_last(weight), image[:1].expand(2, -1, 6, 5))


@cover(channels=[(16, 16), (3, 16), (16, 3)], sm90a=SM90A)
def test_empty_batch(emulation, channels, sm90a):
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(0, *channels, 4, 4, torch.bfloat16)
    check_parameters(emulation, x, weight, image)


@cover(channels=[(64, 64), (3, 64), (64, 3)], sm90a=SM90A)
def test_a_pixel_counts_once(emulation, channels, sm90a):
    """Of ones everywhere, each sum is the number of pixels that a tap reaches."""
    emulation.sm90a(sm90a)
    x, weight, _, image = operands(2, *channels, 11, 19, torch.float16)
    ones = torch.ones_like
    arguments = (ones(image), ones(x), weight, 1.0, *PARAMETERS)
    _, grad_weight, grad_bias = emulation.ops.conv3x3_backward(*arguments)
    rows, columns = (torch.tensor([size - 1.0, size, size - 1.0]) for size in (11, 19))
    expected = (2 * rows[:, None] * columns).half().expand(grad_weight.shape)
    assert torch.equal(grad_weight, expected)
    assert (grad_bias == 2 * 11 * 19).all()


# A block of 3 tiles; with few channels, blocks of 2 runs of 128 pixels, with a barrier between.
SHAPES = {(16, 16): (1, 24, 16), (3, 16): (1, 300, 129), (16, 3): (1, 300, 129)}
MULTIPROCESSORS = {(16, 16): 1, (3, 16): 16, (16, 3): 16}
BARRIERS = [((16, 16), 3), ((3, 16), 3), ((16, 3), 3)]
# Without the last of many channels, a thread would end with copies under way.
WAITS = [((16, 16), 4), ((3, 16), 2), ((16, 3), 2)]


def indices(counts):
    return [(channels, index) for channels, count in counts for index in range(count)]


def gradient(emulation, channels):
    """A call whose blocks take several steps, and its result."""
    emulation.multiprocessors(MULTIPROCESSORS[channels])
    batch, *size = SHAPES[channels]
    x, weight, _, image = operands(batch, *channels, *size, torch.bfloat16)
    arguments = (image, x, weight, 1.0, False, True, False)

    def call():
        return emulation.ops.conv3x3_backward(*arguments)[1]

    return call, call()


@pytest.mark.thorough
@pytest.mark.parametrize("channels, index", indices(BARRIERS))
def test_every_barrier_is_needed(emulation, channels, index):
    call, expected = gradient(emulation, channels)
    emulation.skip_barrier(index)
    assert any(caught(emulation, call, expected))


#: Of a block on sm_90a: the last one lies in the place of the first, which the bias's sums take
#: when it is done.
SM90A_TILES = 5
SM90A_FAULTS = [
    *(("skip_barrier", i) for i in range(SM90A_TILES + 2)),
    *(("skip_wait", i) for i in range(SM90A_TILES + 1)),
    *(("skip_proxy_fence", i) for i in range(SM90A_TILES)),
    # The fifth tile is loaded into the first one's place in the third turn, and no other is.
    *(("skip_product_wait", i) for i in [2, SM90A_TILES]),
]


@pytest.mark.thorough
@pytest.mark.parametrize("skip, index", SM90A_FAULTS)
def test_every_synchronization_on_sm90a_is_needed(emulation, skip, index):
    emulation.sm90a(True)
    emulation.multiprocessors(1)
    x, weight, _, image = operands(1, 64, 64, 8 * SM90A_TILES, 16, torch.bfloat16)

    def call():
        _, *grads = emulation.ops.conv3x3_backward(image, x, weight, 1.0, *PARAMETERS)
        return torch.cat([grad.flatten() for grad in grads])

    expected = call()
    getattr(emulation, skip)(index)
    assert any(caught(emulation, call, expected))


@pytest.mark.thorough
@pytest.mark.parametrize("channels, index", indices(WAITS))
def test_every_wait_is_needed(emulation, channels, index):
    call, expected = gradient(emulation, channels)
    emulation.skip_wait(index)
    assert any(caught(emulation, call, expected))
