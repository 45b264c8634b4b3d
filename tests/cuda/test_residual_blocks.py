"""residual_blocks' CUDA kernels, emulated: chains of those of residual_block, and several chains by
the same launches."""

import pytest
import torch
from support.calls import block_parameters
from support.cuda_convolutions import DTYPES
from support.emulated import SEEDS, check
from support.grids import cover
from support.util import LAYOUTS, channels_last, rand

from clsd_fast.ops.residual_blocks import SECTION

SCALE = 0.5


def operands(count, channels, size, dtype, layout=channels_last, batch=2):
    """[x], and weights1, biases1, weights2, biases2."""
    x, *parameters = (
        layout(t.to(dtype))
        for t in (rand(batch, channels, *size), *block_parameters(count, channels, channels))
    )
    return [x], *(list(parameters[i::4]) for i in range(4))


def several(chains, count, channels, size, dtype, layout=channels_last, batch=1):
    """The same of several chains, no two alike."""
    (x,), *parameters = operands(count * chains, channels, size, dtype, layout, batch)
    return [(x * (1 + chain)).to(dtype) for chain in range(chains)], *parameters


def alone(chains, chain, lists):
    """What is one chain's of the lists of several."""
    return [tensors[chain::chains] for tensors in lists]


def gradients(xs, at):
    """Of the maps after those blocks."""
    return [
        channels_last(rand(*x.shape, seed=i + 10 * chain).to(x.dtype))
        for i in at
        for chain, x in enumerate(xs)
    ]


def backward_arguments(emulation, xs, weights1, biases1, weights2, biases2, at, needs):
    """Of residual_blocks_backward, from the forward's results."""
    kept = list(range(1, len(weights1) // len(xs) + 1))
    blocks = (xs, weights1, biases1, weights2, biases2)
    maps, hiddens = emulation.ops.residual_blocks(*blocks, SCALE, kept, True)
    saved = (xs, maps[: -len(xs)], hiddens, weights1, weights2)
    return gradients(xs, at), at, *saved, SCALE, *needs


@cover(
    count=[1, 2, 3],
    kept=[[], [1], [1, 2]],
    channels=[16, 64],
    size=[(1, 1), (9, 17), (24, 49)],
    layout=LAYOUTS,
    save_hidden=[False, True],
)
def test_a_chain_is_its_blocks(emulation, count, kept, channels, size, layout, save_hidden):
    """Bit-equal, one kernel a block too, by two buffers where maps are not kept."""
    (x,), *parameters = operands(count, channels, size, torch.bfloat16, layout, batch=1)
    kept = sorted({*kept, count} - set(range(count + 1, 4)))
    maps, hiddens = emulation.ops.residual_blocks([x], *parameters, SCALE, kept, save_hidden)
    expected, expected_hiddens = [], []
    image = x
    for block in zip(*parameters, strict=True):
        image, hidden = emulation.ops.residual_block(image, *block, SCALE, save_hidden)
        expected.append(image)
        expected_hiddens.append(hidden)
    assert len(maps) == len(kept) and len(hiddens) == count * save_hidden
    assert all(map(torch.equal, maps, (expected[number - 1] for number in kept)))
    assert all(map(torch.equal, hiddens, expected_hiddens))
    assert {images.stride() for images in maps} == {expected[0].stride()}


@cover(
    sm90a=[False, True],
    at=[[3], [1, 3], [2, 3], [1, 2, 3]],
    channels=[16, 64, 80],
    dtype=DTYPES,
    layout=LAYOUTS,
    size=[(1, 1), (9, 17)],
)
def test_gradients(emulation, sm90a, at, channels, dtype, layout, size):
    emulation.sm90a(sm90a)
    blocks = operands(3, channels, size, dtype, layout)
    arguments = backward_arguments(emulation, *blocks, at, (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("sm90a", [False, True])
def test_gradients_of_a_large_image(emulation, sm90a):
    """Of many tiles, the gradient at a tap added in each."""
    emulation.sm90a(sm90a)
    blocks = operands(2, 64, (50, 49), torch.bfloat16, batch=1)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, False))
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_at_taps_beside_further_slices(emulation, dtype):
    """Of 80 channels, the kernel of wgmma asks for a slice after what is added."""
    emulation.sm90a(True)
    blocks = operands(2, 80, (9, 17), dtype, batch=1)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, False))
    check(emulation, "residual_blocks_backward", *arguments)


@cover(
    sm90a=[False, True],
    chains=[2, 3, 4],
    at=[[2], [1, 2]],
    channels=[16, 64],
    dtype=DTYPES,
    layout=LAYOUTS,
    size=[(1, 1), (9, 17), (13, 25)],
)
def test_several_chains(emulation, sm90a, chains, at, channels, dtype, layout, size):
    emulation.sm90a(sm90a)
    blocks = several(chains, 2, channels, size, dtype, layout)
    check(emulation, "residual_blocks", *blocks, SCALE, at, True)
    arguments = backward_arguments(emulation, *blocks, at, (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


@cover(sm90a=[False, True], chains=[2, 9], save_hidden=[False, True], channels=[16, 64])
def test_each_of_several_chains_is_that_chain_alone(
    emulation, sm90a, chains, save_hidden, channels
):
    """Bit-equal, more of them than a launch takes, too; gradients of weights where their sums are
    not split."""
    emulation.sm90a(sm90a)
    emulation.multiprocessors(1)
    blocks = several(chains, 2, channels, (5, 9), torch.bfloat16)
    maps, hiddens = emulation.ops.residual_blocks(*blocks, SCALE, [1, 2], save_hidden)
    grads, at, *arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    options = arguments[-3:]
    together = emulation.ops.residual_blocks_backward(grads, at, *arguments)
    for chain in range(chains):
        of_chain = emulation.ops.residual_blocks(
            *alone(chains, chain, blocks), SCALE, [1, 2], save_hidden
        )
        grads_alone, *saved = alone(chains, chain, [grads, *arguments[:-3]])
        of_chain += emulation.ops.residual_blocks_backward(grads_alone, at, *saved, *options)
        for several_of, one in zip((maps, hiddens, *together), of_chain, strict=True):
            assert all(map(torch.equal, several_of[chain::chains], one))


@cover(quick=2, seed=SEEDS, sm90a=[False, True])
def test_any_order_of_warps(emulation, seed, sm90a):
    emulation.sm90a(sm90a)
    blocks = operands(2, 64, (9, 5), torch.bfloat16, batch=1)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    emulation.seed(seed)
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_only_some_gradients_are_asked_for(emulation, needs):
    blocks = operands(2, 16, (6, 5), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [1, 2], needs)
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_strides(emulation, layout):
    blocks = operands(2, 16, (6, 5), torch.float16)
    grads, *arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    expanded = torch.ones((), dtype=torch.float16).expand_as(blocks[0][0])
    for given in ([layout(grad) for grad in grads], [expanded, expanded]):
        check(emulation, "residual_blocks_backward", given, *arguments)


def test_more_blocks_than_a_launch_takes(emulation):
    blocks = operands(SECTION + 1, 16, (5, 4), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [2, SECTION + 1], (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


def test_empty_batch(emulation):
    blocks = operands(2, 16, (6, 5), torch.float16, batch=0)
    arguments = backward_arguments(emulation, *blocks, [1, 2], (True, True))
    check(emulation, "residual_blocks_backward", *arguments)


@pytest.mark.parametrize("chains", [1, 4])
def test_launches(emulation, chains):
    """Of a section: its parameters are packed by one, and all their gradients computed by two,
    however many chains its blocks are of."""
    length = SECTION // chains
    blocks = several(chains, length, 64, (8, 8), torch.bfloat16)
    arguments = backward_arguments(emulation, *blocks, [1, length], (True, True))
    kept = list(range(1, length + 1))
    with emulation.recorded(runs=False) as launches:
        emulation.ops.residual_blocks(*blocks, SCALE, kept, True)
    kernels = [launch.kernel.split("<")[0] for launch, _ in launches]
    assert kernels == ["pack_kernel", *["sm80::conv3x3_kernel"] * 2 * length]
    with emulation.recorded(runs=False) as launches:
        emulation.ops.residual_blocks_backward(*arguments)
    kernels = [launch.kernel.split("<")[0] for launch, _ in launches]
    wgrad = ["wgrad_sm80::wgrad_kernel", "wgrad::wgrad_reduce_kernel"]
    assert kernels == ["pack_kernel", *["sm80::conv3x3_kernel"] * 2 * length, *wgrad]
