from collections import Counter

import numpy as np
import pytest
import torch
from support import fake_graph
from support.trainer_util import noise

from clsd_train.batches import HostBatches
from clsd_train.data import Pair
from clsd_train.device_batches import DeviceBatches
from clsd_train.sampler import (
    NativeBatchSampler,
    NumpyBatchSampler,
    make_sampler,
    random_below,
)

SIZES = ((12, 9), (8, 30), (17, 8))


def images(scale):
    lr = [noise(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    hr = [image.repeat(scale, axis=0).repeat(scale, axis=1) for image in lr]
    return lr, hr


def samplers():
    needs_native = pytest.mark.skipif(NativeBatchSampler is None, reason="needs clsd_train._host")
    native = pytest.param(NativeBatchSampler, id="native", marks=needs_native)
    return pytest.mark.parametrize("kind", [native, pytest.param(NumpyBatchSampler, id="numpy")])


@pytest.mark.skipif(NativeBatchSampler is None, reason="needs clsd_train._host")
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_native_equals_numpy(scale, seed):
    lr = [noise(height, width, seed=1) for height, width in SIZES]
    hr = [noise(scale * height, scale * width, seed=2) for height, width in SIZES]
    native, oracle = (k(lr, hr, scale, 8, 5, seed) for k in (NativeBatchSampler, NumpyBatchSampler))
    for iteration in (1, 2, 3, 10**6, 2**40):
        for ours, expected in zip(native.sample(iteration), oracle.sample(iteration), strict=True):
            assert ours.dtype == np.uint8
            np.testing.assert_array_equal(ours, expected)


@samplers()
@pytest.mark.parametrize("scale", [2, 3])
def test_patches_are_aligned_through_every_transform(kind, scale):
    sampler = kind(*images(scale), scale, 8, 64, 0)
    lr, hr = sampler.sample(1)
    assert lr.shape == (64, 8, 8, 3)
    assert hr.shape == (64, 8 * scale, 8 * scale, 3)
    np.testing.assert_array_equal(hr, lr.repeat(scale, axis=1).repeat(scale, axis=2))


@samplers()
def test_every_sample_is_a_patch_and_all_eight_transforms_occur(kind):
    image = noise(8, 8)  # exactly one patch: only the transform is left to chance
    variants = [np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)]
    lr, _ = kind([image], [image.repeat(2, 0).repeat(2, 1)], 2, 8, 400, 0).sample(1)
    seen = Counter(
        next(i for i, variant in enumerate(variants) if (patch == variant).all()) for patch in lr
    )
    assert set(seen) == set(range(8))
    assert min(seen.values()) > 25


@samplers()
def test_images_are_drawn_uniformly_whatever_their_size(kind):
    lr = [np.full((size, size, 3), size, np.uint8) for size in (8, 80)]
    hr = [image.repeat(2, 0).repeat(2, 1) for image in lr]
    patches, _ = kind(lr, hr, 2, 8, 1000, 0).sample(1)
    assert 440 < (patches[:, 0, 0, 0] == 8).sum() < 560


@samplers()
def test_batch_is_a_function_of_seed_and_iteration(kind):
    lr, hr = images(2)
    first = kind(lr, hr, 2, 8, 4, 3)
    first.sample(1)
    again = kind(lr, hr, 2, 8, 4, 3).sample(2)[0]
    np.testing.assert_array_equal(first.sample(2)[0], again)
    assert (first.sample(3)[0] != again).any()
    assert (kind(lr, hr, 2, 8, 4, 4).sample(2)[0] != again).any()


def test_positions_reach_both_ends():
    drawn = {random_below(5, 0, iteration) for iteration in range(200)}
    assert drawn == set(range(5))


@pytest.mark.skipif(NativeBatchSampler is None, reason="needs clsd_train._host")
@pytest.mark.parametrize(
    ("lr", "hr", "message"),
    [
        ([], [], "as many HR as LR images"),
        ([noise(8, 8)], [noise(16, 17)], "HR 2 times the size of LR"),
        ([noise(7, 8)], [noise(14, 16)], "LR of at least 8 pixels"),
        ([noise(8, 8)[..., 0]], [noise(16, 16)], r"shape \[H, W, 3\]"),
    ],
)
def test_native_refuses_what_it_could_not_read(lr, hr, message):
    with pytest.raises(ValueError, match=message):
        NativeBatchSampler(lr, hr, 2, 8, 1, 0)


@samplers()
def test_a_part_of_a_larger_batch(kind):
    whole = kind(*images(2), 2, 8, 6, 0).sample(3)
    part = kind(*images(2), 2, 8, 2, 0, first=3).sample(3)
    for ours, expected in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, expected[3:5])


@pytest.mark.skipif(NativeBatchSampler is None, reason="needs clsd_train._host")
@pytest.mark.parametrize("sizes", [(8, 15), (9, 16)])
def test_native_refuses_to_fill_another_batch(sizes):
    sampler = NativeBatchSampler(*images(2), 2, 8, 2, 0)
    with pytest.raises(ValueError, match=r"batches of shape \[2, \d+, \d+, 3\]"):
        sampler.fill(1, *(np.empty((2, size, size, 3), np.uint8) for size in sizes))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_device_batches_are_the_samplers(scale, seed):
    lr = [noise(height, width, seed=1) for height, width in SIZES]
    hr = [noise(scale * height, scale * width, seed=2) for height, width in SIZES]
    pairs = [Pair("x", *images) for images in zip(lr, hr, strict=True)]
    batches = DeviceBatches(pairs, scale, 8, 5, seed, 3, torch.device("cpu"))
    oracle = NumpyBatchSampler(lr, hr, scale, 8, 5, seed, 3)
    for iteration in (1, 2, 3, 10**6, 2**40):
        batches.load(iteration)
        for ours, expected in zip(batches.images(), oracle.sample(iteration), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected)


def test_a_graph_makes_device_batches():
    """The counter is all that tells one batch from the next."""
    pairs = [Pair("x", lr, hr) for lr, hr in zip(*images(2), strict=True)]
    batches = DeviceBatches(pairs, 2, 8, 4, 0, 0, torch.device("cpu"))
    made = [torch.empty(4, size, size, 3, dtype=torch.uint8) for size in (8, 16)]

    def make():
        for target, source in zip(made, batches.images(), strict=True):
            target.copy_(source)

    replay = fake_graph.capture(make)
    for iteration in (1, 2):
        batches.load(iteration)
        replay()
        for ours, expected in zip(made, batches.images(), strict=True):
            assert torch.equal(ours, expected)


def test_batches_of_consecutive_iterations_lie_in_one_place():
    pairs = [Pair("x", lr, hr) for lr, hr in zip(*images(2), strict=True)]
    sampler = make_sampler(pairs, 2, 8, 4, 0)
    shapes = [[4, 8, 8, 3], [4, 16, 16, 3]]
    batches = HostBatches(sampler, shapes, 5, torch.device("cpu"))
    places = [batch.data_ptr() for batch in batches.images()]
    for iteration in (5, 6, 7, 8):
        batches.load(iteration)
        for ours, expected in zip(batches.images(), sampler.sample(iteration), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected)
    assert [batch.data_ptr() for batch in batches.images()] == places
    batches.close()
