"""PSNR and SSIM as the super-resolution literature reports them: on luma, or on RGB."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pytorch_msssim import ssim
from torch import Tensor

# BT.601 studio range, for RGB in 0..255.
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0
# SSIM looks at the image through a Gaussian of so many pixels a side.
SSIM_WINDOW = 11


class Quality(NamedTuple):
    """PSNR in dB and SSIM."""

    psnr: float
    ssim: float


def luma(image: np.ndarray) -> Tensor:
    """Y of a uint8 RGB image [H, W, 3], float64 [1, 1, H, W] in 16..235, not rounded."""
    weights = torch.tensor(LUMA_WEIGHTS, dtype=torch.float64) / 255
    return (torch.tensor(image, dtype=torch.float64) @ weights + LUMA_OFFSET)[None, None]


def _channels(image: np.ndarray) -> Tensor:
    """Of a uint8 image [H, W, C], float64 [1, C, H, W]."""
    return torch.tensor(image, dtype=torch.float64).movedim(-1, 0)[None]


def least_size(shave: int) -> int:
    """Pixels a side from which :func:`quality` is defined."""
    return SSIM_WINDOW + 2 * shave


def quality(sr: np.ndarray, hr: np.ndarray, shave: int, rgb: bool = False) -> Quality:
    """Quality of a uint8 RGB image against the original, without a border.

    Args:
        sr: [H, W, 3], already clamped and rounded to uint8.
        hr: [H, W, 3].
        shave: pixels to leave out along each side; the scale, by convention.
        rgb: on all three channels instead of Y; SSIM is then their mean.

    Raises:
        ValueError: if the shapes differ, or nothing of SSIM's window is left.
    """
    inner = [size - 2 * shave for size in hr.shape[:2]]
    if sr.shape != hr.shape or min(inner) < SSIM_WINDOW:
        raise ValueError(
            f"quality: expected images of one shape, at least {least_size(shave)} pixels a side, "
            f"got {list(sr.shape)} and {list(hr.shape)}"
        )
    ours, original = (
        (_channels if rgb else luma)(image[shave : shave + inner[0], shave : shave + inner[1]])
        for image in (sr, hr)
    )
    psnr = 10 * (255.0**2 / (ours - original).square().mean()).log10()
    structural = ssim(ours, original, data_range=255, win_size=SSIM_WINDOW, win_sigma=1.5)
    return Quality(psnr.item(), structural.item())


def mean_quality(qualities: Sequence[Quality]) -> Quality:
    """The mean over images."""
    return Quality(*(float(np.mean(values)) for values in zip(*qualities, strict=True)))
