import math

import numpy as np
import pytest
from support.trainer_util import noise

from clsd_train.images import bicubic_upscale, crop_to_multiple, find_images, read_image
from clsd_train.metrics import Quality, luma, mean_quality, quality

# Published by the authors of RCAN for their own SR images, and bicubic of the literature.
RCAN = {2: (38.27, 0.9614), 3: (34.74, 0.9299), 4: (32.63, 0.9002)}
BICUBIC_PSNR = {2: 33.67, 3: 30.40, 4: 28.43}


def set5(image_data, folder, scale):
    """(image of folder, its HR) of each Set5 image."""
    for path in find_images([image_data / "test" / "Set5" / "HR"]):
        (other,) = (image_data / "test" / "Set5" / folder).glob(f"{path.stem}*")
        yield read_image(other), crop_to_multiple(read_image(path), scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_images_score_as_published(image_data, scale):
    images = set5(image_data, f"RCAN_published_SR_x{scale}", scale)
    mean = mean_quality([quality(sr, hr, scale) for sr, hr in images])
    psnr, ssim = RCAN[scale]
    assert mean.psnr == pytest.approx(psnr, abs=0.01)
    assert mean.ssim == pytest.approx(ssim, abs=0.0002)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_scores_as_in_the_literature(image_data, scale):
    images = set5(image_data, f"LR_matlab_x{scale}", scale)
    scores = [quality(bicubic_upscale(lr, scale), hr, scale) for lr, hr in images]
    assert mean_quality(scores).psnr == pytest.approx(BICUBIC_PSNR[scale], abs=0.01)


def test_luma_of_black_white_and_red():
    image = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    assert luma(image).flatten().tolist() == pytest.approx([16, 235, 81.481])


def test_psnr_of_a_known_difference():
    hr = np.full((32, 32, 3), 100, np.uint8)
    difference = 10 * (65.481 + 128.553 + 24.966) / 255
    expected = 20 * math.log10(255 / difference)
    assert quality(hr + np.uint8(10), hr, 2).psnr == pytest.approx(expected)


def test_equal_images_are_perfect():
    score = quality(noise(32, 32), noise(32, 32), 2)
    assert score.psnr == math.inf
    assert score.ssim == pytest.approx(1)


def test_shaved_border_does_not_count():
    hr = noise(32, 40)
    sr = noise(32, 40, seed=1)
    sr[3:-3, 3:-3] = hr[3:-3, 3:-3]
    assert quality(sr, hr, 3).psnr == math.inf
    assert quality(sr, hr, 2).psnr < math.inf


@pytest.mark.parametrize(("sr", "shave"), [((32, 30, 3), 2), ((32, 32, 3), 11)])
def test_other_shape_or_nothing_left_is_refused(sr, shave):
    with pytest.raises(ValueError, match="quality: expected images of one shape"):
        quality(np.zeros(sr, np.uint8), noise(32, 32), shave)


def test_mean_is_over_images():
    assert mean_quality([Quality(30, 0.8), Quality(40, 0.9)]) == pytest.approx((35, 0.85))
