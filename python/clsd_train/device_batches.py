"""Batches cut out where the images are: on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .data import Pair
from .sampler import IMAGE, LEFT, TOP, TRANSFORM


class DeviceBatches:
    """The batches of :class:`~clsd_train.sampler.NumpyBatchSampler`, bit for bit, of images that
    lie on a device as uint8; each is a function of a counter there.

    Args:
        pairs: none smaller than a patch.
        scale: HR pixels per LR pixel.
        patch_size: side of an LR patch.
        batch_size: samples.
        seed: of the stream.
        first: number of the first sample in a larger batch, of which these are a part.
        device: where.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        first: int,
        device: torch.device,
    ) -> None:
        self._iteration = torch.zeros((), dtype=torch.int64, device=device)
        self._numbers = torch.arange(first, first + batch_size, device=device)
        self._state = _fold(torch.zeros_like(self._iteration), seed)
        self._count, self._size = len(pairs), patch_size
        sizes = [pair.lr.shape[:2] for pair in pairs]
        self._heights, self._widths = torch.tensor(sizes, device=device).unbind(1)
        self._sources = [
            _Pixels([getattr(pair, part) for pair in pairs], factor, factor * patch_size, device)
            for part, factor in (("lr", 1), ("hr", scale))
        ]

    def load(self, iteration: int) -> None:
        """Let :meth:`images` be the batch of an iteration."""
        self._iteration.fill_(iteration)

    def images(self) -> list[Tensor]:
        """uint8 [B, p, p, 3] and [B, scale p, scale p, 3]."""
        state = _fold(_fold(self._state, self._iteration), self._numbers)

        def draw(count: Tensor | int, purpose: int) -> Tensor:
            return (_shift(_fold(state, purpose), 32) * count) >> 32

        image = draw(self._count, IMAGE)
        width = self._widths[image]
        top = draw(self._heights[image] - self._size + 1, TOP)
        left = draw(width - self._size + 1, LEFT)
        transform = draw(8, TRANSFORM)
        return [source.patches(image, top, left, width, transform) for source in self._sources]

    def close(self) -> None:
        """Nothing is left to end."""


class _Pixels:
    """Images one after another, uint8 [pixels, 3]."""

    def __init__(
        self, images: Sequence[np.ndarray], factor: int, size: int, device: torch.device
    ) -> None:
        counts = [image.shape[0] * image.shape[1] for image in images]
        self._factor = factor
        self._side = torch.arange(size, device=device)
        starts = np.cumsum([0, *counts])
        self._starts = torch.tensor(starts[:-1], device=device)
        self._pixels = torch.empty(int(starts[-1]), 3, dtype=torch.uint8, device=device)
        for image, start, count in zip(images, starts, counts, strict=False):
            # The copy also serves read-only images, which torch would warn of.
            self._pixels[start : start + count] = torch.tensor(image).view(-1, 3)

    def patches(
        self, image: Tensor, top: Tensor, left: Tensor, width: Tensor, transform: Tensor
    ) -> Tensor:
        """Squares of the images at [B] positions in LR pixels, flipped and transposed."""
        image, top, left, width, transform = (
            values[:, None, None] for values in (image, top, left, width, transform)
        )
        down, across = self._side[:, None], self._side[None, :]
        transposed, last = transform & 4 > 0, len(self._side) - 1
        row, column = torch.where(transposed, across, down), torch.where(transposed, down, across)
        column = torch.where(transform & 1 > 0, last - column, column)
        row = torch.where(transform & 2 > 0, last - row, row)
        rows, columns = self._factor * top + row, self._factor * left + column
        return self._pixels[self._starts[image] + rows * (self._factor * width) + columns]


def _fold(state: Tensor, counter: Tensor | int) -> Tensor:
    """A counter into a state, as :func:`~clsd_train.sampler.random_below` does; int64 wraps around
    as it should, and constants above its range are written as negative."""
    state = state + counter + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ _shift(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shift(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, count: int) -> Tensor:
    """Down by so many bits, zeros following."""
    return (state >> count) & (2 ** (64 - count) - 1)
