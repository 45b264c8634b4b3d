"""Batches on the device, where a step finds them."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from .config import Config
from .data import Pair
from .device_batches import DeviceBatches
from .sampler import Sampler, make_sampler


class Batches(Protocol):
    def load(self, iteration: int) -> None:
        """Let :meth:`images` be the batch of an iteration, which follows the last one."""
        ...

    def images(self) -> list[Tensor]:
        """LR and HR images, uint8 [B, h, w, 3], on the device; nothing waits for it."""
        ...

    def close(self) -> None: ...


def make_batches(
    pairs: list[Pair], config: Config, samples: range, iteration: int, device: torch.device
) -> Batches:
    """These samples of the run's batches, from an iteration on.

    The images lie where ``data.residency`` says.
    """
    scale, size = config.scale, config.data.patch_size
    count, seed, first = len(samples), config.train.seed, samples.start
    if config.data.residency == "device" or (
        config.data.residency == "auto" and _has_room(pairs, device)
    ):
        return DeviceBatches(pairs, scale, size, count, seed, first, device)
    sampler = make_sampler(pairs, scale, size, count, seed, first)
    shapes = [[count, side, side, 3] for side in (size, scale * size)]
    return HostBatches(sampler, shapes, iteration, device)


def _has_room(pairs: list[Pair], device: torch.device) -> bool:
    """Whether the images take less than half of what is free on a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(pair.lr.size + pair.hr.size for pair in pairs) < free / 2


class HostBatches:
    """Batches that a thread makes ahead of the step which uses them.

    On a GPU, one of two pinned pairs of buffers is filled while the other is copied, by a stream of
    its own that the computation does not wait for.

    Args:
        sampler: makes the batches.
        shapes: of a batch of LR and of HR images, [B, h, w, 3].
        first: the first iteration that is asked for.
        device: where the images are needed.
    """

    def __init__(
        self, sampler: Sampler, shapes: list[list[int]], first: int, device: torch.device
    ) -> None:
        self._sampler = sampler
        self._images = [torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes]
        self._stages = [_Stage(shapes, device), _Stage(shapes, device)]
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._next = self._begin(first)

    def _begin(self, iteration: int) -> "Future[_Stage]":
        stage = self._stages[iteration % 2]
        return self._pool.submit(stage.fill, self._sampler, iteration)

    def load(self, iteration: int) -> None:
        """Put the batch of the next iteration where :meth:`images` has it."""
        stage = self._next.result()
        stage.move_to(self._images)
        self._next = self._begin(iteration + 1)

    def images(self) -> list[Tensor]:
        """The LR and HR images, uint8, always the same tensors."""
        return self._images

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class _Stage:
    """A batch on its way: in memory of the host, and on a GPU beside that in the GPU's."""

    def __init__(self, shapes: list[list[int]], device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        pinned = self._stream is not None
        self._host = [torch.empty(s, dtype=torch.uint8, pin_memory=pinned) for s in shapes]
        self._moved = self._host
        if self._stream:
            self._moved = [torch.empty(s, dtype=torch.uint8, device=device) for s in shapes]

    def fill(self, sampler: Sampler, iteration: int) -> "_Stage":
        """Make a batch and start to copy it; what the buffers held has been used."""
        if self._stream:
            self._stream.synchronize()
        sampler.fill(iteration, *(images.numpy() for images in self._host))
        if self._stream:
            with torch.cuda.stream(self._stream):
                for source, target in zip(self._host, self._moved, strict=True):
                    target.copy_(source, non_blocking=True)
        return self

    def move_to(self, images: list[Tensor]) -> None:
        """Copy the batch, on the computation's stream."""
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)
        for source, target in zip(self._moved, images, strict=True):
            target.copy_(source)
        if self._stream:  # which may write there again after that
            self._stream.wait_stream(torch.cuda.current_stream())
