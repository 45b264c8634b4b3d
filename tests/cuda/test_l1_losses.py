"""The CUDA kernels of the mean absolute errors, emulated."""

import pytest
import torch
from support.cuda_convolutions import DTYPES
from support.emulated import SEEDS, formats
from support.grids import cover
from support.util import LAYOUTS, channels_last, rand
from tolerance import assert_close, assert_draws_close

from clsd_fast import reference


def images(count, *shape, layout=channels_last, seed=0):
    """A target and images, some pixels of which are the target's."""
    seeds = range(seed, seed + count + 1)
    target, *others = (layout(255 * rand(*shape, seed=seed).float()) for seed in seeds)
    for image in others:
        image[..., :1] = target[..., :1]
    return target, others


def doubled(target, others):
    return target.double(), [image.double() for image in others]


def check_losses(emulation, draws):
    """Of several targets and their images: a single number is a matter of luck."""
    found = [
        (
            emulation.ops.l1_losses(*given, 255.0),
            reference.l1_losses(*doubled(*given), 255.0),
            reference.l1_losses(*given, 255.0),
        )
        for given in draws
    ]
    defined = min(2, len(draws[0][1]))
    for results in list(zip(*(zip(*each, strict=True) for each in found), strict=True))[:defined]:
        assert_draws_close(list(results), "losses")


def check_gradients(emulation, target, others, grads):
    wide = [grad if grad is None else grad.double() for grad in grads]
    results = zip(
        emulation.ops.l1_losses_backward(*grads, target, others, 255.0),
        reference.l1_losses_backward(*wide, *doubled(target, others), 255.0),
        reference.l1_losses_backward(*grads, target, others, 255.0),
        strict=True,
    )
    for result in results:
        assert_close(*result, "gradient")
        assert formats(result[0]) == formats(others[0])


@cover(
    count=[1, 2, 4, 65],
    shape=[(1, 1, 1, 1), (2, 3, 5, 7), (3, 3, 30, 61)],
    grads=[(True, True), (True, False), (False, True)],
)
def test_the_rule(emulation, count, shape, grads):
    """As many images as a launch takes and one more, too, and parts that are not full."""
    given = [rand(seed=i).float() if grad else None for i, grad in enumerate(grads)]
    check_losses(emulation, [images(count, *shape, seed=seed) for seed in range(8)])
    check_gradients(emulation, *images(count, *shape), given)


def test_more_parts_than_a_block_has_threads(emulation):
    """Which are 256, and a part 4,096 elements: each is one more than the target."""
    target = torch.zeros(1, 1, 1024, 1030)
    mean, _ = emulation.ops.l1_losses(target, [target + 1], 255.0)
    assert mean.item() == pytest.approx(1 / 255)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulation, layout):
    """Of the target, which need not be the images'."""
    target, _ = images(0, 2, 3, 5, 7, layout=layout)
    _, others = images(2, 2, 3, 5, 7)
    expected = emulation.ops.l1_losses(channels_last(target), others, 255.0)
    assert all(map(torch.equal, emulation.ops.l1_losses(target, others, 255.0), expected))
    check_gradients(emulation, target, others, [rand().float(), rand(seed=1).float()])


@cover(quick=1, seed=SEEDS)
def test_any_order_of_warps(emulation, seed):
    target, others = images(3, 2, 3, 40, 61)
    expected = emulation.ops.l1_losses(target, others, 255.0)
    emulation.seed(seed)
    assert all(map(torch.equal, emulation.ops.l1_losses(target, others, 255.0), expected))


def test_nan_is_not_lost(emulation):
    target, others = images(2, 1, 3, 4, 5)
    others[1][0, 2, 3, 4] = torch.nan
    first, of_others = emulation.ops.l1_losses(target, others, 255.0)
    assert first.isfinite() and of_others.isnan()


def test_launches(emulation):
    """However many images there are."""
    target, others = images(4, 2, 3, 40, 61)
    with emulation.recorded(runs=False) as forward:
        emulation.ops.l1_losses(target, others, 255.0)
    with emulation.recorded(runs=False) as backward:
        emulation.ops.l1_losses_backward(rand().float(), None, target, others, 255.0)
    assert (len(forward), len(backward)) == (2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refused(emulation, dtype):
    target, others = images(2, 1, 3, 4, 5)
    with pytest.raises(RuntimeError, match="expected target of dtype float32 for its CUDA kernel"):
        emulation.ops.l1_losses(target.to(dtype), others, 255.0)
    with pytest.raises(RuntimeError, match="expected images of dtype float32, got"):
        emulation.ops.l1_losses(target, [others[0].to(dtype)], 255.0)
    with pytest.raises(RuntimeError, match=r"expected images of shape \[1, 3, 4, 5\], got"):
        emulation.ops.l1_losses(target, [others[0][..., :3]], 255.0)
    with pytest.raises(RuntimeError, match="expected at least one image, got none"):
        emulation.ops.l1_losses(target, [], 255.0)
