"""Random patches. A batch is a function of (seed, iteration): there is no state to save."""

from typing import Protocol

import numpy as np

from .data import Pair

try:
    from . import _host
except ImportError:  # installed without native code
    NativeBatchSampler = None
else:
    NativeBatchSampler = _host.BatchSampler

MASK = (1 << 64) - 1
IMAGE, TOP, LEFT, TRANSFORM = range(4)


class Sampler(Protocol):
    def sample(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 batches [B, p, p, 3] and [B, scale p, scale p, 3]."""
        ...

    def fill(self, iteration: int, lr: np.ndarray, hr: np.ndarray) -> None:
        """The same into contiguous arrays."""
        ...


def random_below(count: int, *counters: int) -> int:
    """A number in 0..count-1 that is a function of the counters.

    The counters are folded into one 64-bit state by SplitMix64's mixing function (Steele et
    al., 2014); its upper half is scaled to the range.
    """
    state = 0
    for counter in counters:
        state = (state + counter + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return ((state >> 32) * count) >> 32


class NumpyBatchSampler:
    """Batches of aligned LR and HR patches; the native sampler gives the same, bit for bit.

    Each sample takes an image (uniformly, whatever its size, as EDSR's loader does), a position
    (uniformly) and one of the eight flips and rotations.

    Args:
        lr: uint8 images [h, w, 3], none smaller than a patch.
        hr: their uint8 images [scale h, scale w, 3].
        scale: HR pixels per LR pixel.
        patch_size: side of an LR patch.
        batch_size: samples.
        seed: of the stream.
        first: number of the first sample in a larger batch, of which these are a part.
    """

    def __init__(
        self,
        lr: list[np.ndarray],
        hr: list[np.ndarray],
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        first: int = 0,
    ) -> None:
        self.lr, self.hr, self.scale = lr, hr, scale
        self.patch_size, self.seed = patch_size, seed
        self.numbers = range(first, first + batch_size)

    def sample(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 batches [B, p, p, 3] and [B, scale p, scale p, 3]."""
        pairs = [self._sample_one(iteration, number) for number in self.numbers]
        lr, hr = zip(*pairs, strict=True)
        return np.stack(lr), np.stack(hr)

    def fill(self, iteration: int, lr: np.ndarray, hr: np.ndarray) -> None:
        """The same into contiguous arrays."""
        lr[...], hr[...] = self.sample(iteration)

    def _sample_one(self, iteration: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        def draw(count: int, purpose: int) -> int:
            return random_below(count, self.seed, iteration, number, purpose)

        image = draw(len(self.lr), IMAGE)
        height, width = self.lr[image].shape[:2]
        top = draw(height - self.patch_size + 1, TOP)
        left = draw(width - self.patch_size + 1, LEFT)
        transform = draw(8, TRANSFORM)
        lr, hr = (
            _patch(source[image], factor * top, factor * left, factor * self.patch_size, transform)
            for source, factor in ((self.lr, 1), (self.hr, self.scale))
        )
        return lr, hr


def _patch(image: np.ndarray, top: int, left: int, size: int, transform: int) -> np.ndarray:
    patch = image[top : top + size, left : left + size]
    if transform & 1:
        patch = patch[:, ::-1]
    if transform & 2:
        patch = patch[::-1]
    return patch.swapaxes(0, 1) if transform & 4 else patch


def make_sampler(
    pairs: list[Pair], scale: int, patch_size: int, batch_size: int, seed: int, first: int = 0
) -> Sampler:
    """The native sampler if this installation has it, else the NumPy one."""
    kind = NativeBatchSampler or NumpyBatchSampler
    lr, hr = [pair.lr for pair in pairs], [pair.hr for pair in pairs]
    return kind(lr, hr, scale, patch_size, batch_size, seed, first)
