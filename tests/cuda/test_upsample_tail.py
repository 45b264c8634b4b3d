"""The composed tail's CUDA kernels, emulated: of one tail, and of several by the same launches."""

import pytest
import torch
from support import upsample_tail as tail
from support.cuda_convolutions import DTYPES
from support.emulated import SEEDS, check
from support.grids import cover
from support.util import LAYOUTS, channels_last, rand

from clsd_fast._tail_axes import STAGES


def arguments(
    scale, count, batch, channels, size, dtype, layout=channels_last, shifted=False, **options
):
    """Of upsample_tails, with parameters of any strides and float32."""
    tails = [
        tail.inputs(scale, batch, channels, *size, seed=seed, **options) for seed in range(count)
    ]
    lists = [[t for t in tensors if t is not None] for tensors in zip(*tails, strict=True)]
    xs, *stages, out_weights, out_biases = lists
    xs = [layout(x.to(dtype)) for x in xs]
    stages = [[tensor.float() for tensor in tensors] for tensors in stages]
    stages += [[]] * (4 - len(stages))
    out_weights = [channels_last(weight.float()) for weight in out_weights]
    outputs = len(out_weights[0])
    shift = [rand(outputs, outputs, 1, 1, seed=5).float(), 128 * rand(outputs, seed=6).float()]
    out_biases = [bias.float() for bias in out_biases]
    return [xs, *stages, out_weights, out_biases, *(shift if shifted else [None, None]), scale]


def backward_arguments(emulation, given, needs=(True, True), layout=channels_last):
    outputs, composed = emulation.ops.upsample_tails(*given)
    grads = [layout(rand(*o.shape, seed=i).to(o.dtype)) for i, o in enumerate(outputs)]
    xs, *parameters, _, shift_weight, _, scale = given
    return [grads, xs, composed, *parameters, shift_weight, scale, *needs]


@cover(
    scale=tail.SCALES,
    count=[2, 3, 4],
    channels=[16, 64, 80],
    outputs=[1, 3],
    middle=[16, 32],
    size=[(1, 1), (2, 3), (1, 20), (9, 17), (16, 33)],
    dtype=DTYPES,
    bias=[True, False],
    shifted=[True, False],
)
def test_the_rule(emulation, scale, count, channels, outputs, middle, size, dtype, bias, shifted):
    options = {"outputs": outputs, "bias": bias, "middle": middle, "shifted": shifted}
    given = arguments(scale, count, 2, channels, size, dtype, **options)
    check(emulation, "upsample_tails", *given)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given))


@pytest.mark.thorough
@pytest.mark.parametrize("scale", tail.SCALES)
def test_many_tiles(emulation, scale):
    """Of several images; the edges of 9 of them are more rows than a tile's."""
    given = arguments(scale, 2, 9, 16, (24, 49), torch.bfloat16)
    check(emulation, "upsample_tails", *given)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given))


@cover(quick=2, scale=tail.SCALES)
def test_one_tail_is_the_first_of_several(emulation, scale):
    """Bit-equal, however many blocks its sums are split into."""
    given = arguments(scale, 2, 2, 16, (9, 18), torch.float16)
    xs, *parameters, _, _, _ = given
    first = [xs[0], *(tensors[0] if tensors else None for tensors in parameters), scale]
    outputs, composed = emulation.ops.upsample_tails(*given)
    output, of_one = emulation.ops.upsample_tail(*first)
    assert torch.equal(output, outputs[0]) and torch.equal(of_one, composed[0])
    emulation.multiprocessors(1)
    grads, *arguments_of_all = backward_arguments(emulation, given)
    of_all = emulation.ops.upsample_tails_backward(grads, *arguments_of_all)
    of_one = emulation.ops.upsample_tail_backward(
        grads[0], first[0], of_one, *first[1:6], scale, True, True
    )
    for several, alone in zip(of_all, of_one, strict=True):
        assert torch.equal(several[0], alone)


def test_shifted_outputs_are_not_rounded(emulation):
    """To 16 bits, of which bfloat16's tell values above 128 apart by whole steps: but for the shift
    they are the tail's own before those are rounded."""
    *given, _, _, scale = arguments(2, 2, 1, 16, (5, 19), torch.bfloat16)
    identity, shift = torch.eye(3).view(3, 3, 1, 1), torch.full((3,), 200.0)
    outputs, composed = emulation.ops.upsample_tails(*given, None, None, scale)
    shifted, of_shifted = emulation.ops.upsample_tails(*given, identity, shift, scale)
    for output, image in zip(outputs, shifted, strict=True):
        assert image.dtype == torch.float32
        torch.testing.assert_close(image - 200, output.float(), rtol=2**-8, atol=1e-4)
    assert all(map(torch.equal, composed, of_shifted))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    given = arguments(2, 2, 2, 16, (6, 5), torch.bfloat16, layout)
    check(emulation, "upsample_tails", *given)
    check(
        emulation, "upsample_tails_backward", *backward_arguments(emulation, given, layout=layout)
    )


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
def test_only_some_gradients_are_asked_for(emulation, needs):
    given = arguments(4, 2, 1, 16, (5, 4), torch.bfloat16, middle=16)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given, needs))


def test_empty_batch(emulation):
    given = arguments(2, 2, 0, 16, (5, 4), torch.bfloat16)
    check(emulation, "upsample_tails", *given)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given))


def test_more_tails_than_a_launch_takes(emulation):
    given = arguments(2, 9, 1, 16, (3, 4), torch.bfloat16, middle=16)
    check(emulation, "upsample_tails", *given)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given))


@cover(quick=1, seed=SEEDS)
def test_any_order_of_warps(emulation, seed):
    """Which no result depends on."""
    given = arguments(2, 2, 2, 16, (9, 18), torch.bfloat16, middle=16)
    backward = backward_arguments(emulation, given)
    expected = [
        *emulation.ops.upsample_tails(*given)[0],
        *(t for grads in emulation.ops.upsample_tails_backward(*backward) for t in grads),
    ]
    emulation.seed(seed)
    results = [
        *emulation.ops.upsample_tails(*given)[0],
        *(t for grads in emulation.ops.upsample_tails_backward(*backward) for t in grads),
    ]
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
def test_splits_of_any_gpu(emulation, multiprocessors):
    emulation.multiprocessors(multiprocessors)
    given = arguments(2, 2, 5, 16, (9, 18), torch.bfloat16, middle=16, shifted=True)
    check(emulation, "upsample_tails_backward", *backward_arguments(emulation, given))


@pytest.mark.parametrize("scale", tail.SCALES)
@pytest.mark.parametrize("shifted", [False, True])
def test_launches(emulation, scale, shifted):
    """However many tails there are."""
    given = arguments(scale, 4, 2, 16, (9, 18), torch.bfloat16, middle=16, shifted=shifted)
    stages = len(STAGES[scale])
    with emulation.recorded(runs=False) as forward:
        emulation.ops.upsample_tails(*given)
    backward = backward_arguments(emulation, given)
    with emulation.recorded(runs=False) as launches:
        emulation.ops.upsample_tails_backward(*backward)
    assert len(forward) == 2 * stages + 1
    assert len(launches) == 5 + stages


def test_refused(emulation):
    given = arguments(2, 2, 1, 16, (5, 4), torch.bfloat16, middle=16)
    short = [given[0], given[1][:1], *given[2:]]
    with pytest.raises(RuntimeError, match="expected lists of 2 tensors, got 1"):
        emulation.ops.upsample_tails(*short)
    other = [[given[0][0], given[0][1][..., :3]], *given[1:]]
    with pytest.raises(RuntimeError, match=r"expected xs of shape \[1, 16, 5, 4\], got"):
        emulation.ops.upsample_tails(*other)
    given = arguments(2, 2, 1, 16, (5, 4), torch.bfloat16, middle=16, shifted=True)
    with pytest.raises(RuntimeError, match="expected shift_weight and shift_bias or neither, got"):
        emulation.ops.upsample_tails(*given[:-2], None, given[-1])
    with pytest.raises(RuntimeError, match=r"expected shift_weight of shape \[3, 3, 1, 1\], got"):
        emulation.ops.upsample_tails(*given[:-3], given[-2], *given[-2:])
    odd = arguments(2, 1, 1, 24, (5, 4), torch.bfloat16, middle=16)
    with pytest.raises(RuntimeError, match="expected channels in multiples of 16 up to 256 and"):
        emulation.ops.upsample_tails(*odd)
