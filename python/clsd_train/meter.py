"""Losses that are summed where they are computed, until someone asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What the steps since the last reset have made.

    Attributes:
        losses: the mean of each loss.
        steps: how many there were.
        finite_steps: how many before the first whose losses were not all finite.
    """

    losses: dict[str, float]
    steps: int
    finite_steps: int


class Meter:
    """Sums of losses on a device; :meth:`read` alone waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._names: tuple[str, ...] = ()
        self._sums = torch.empty(0, dtype=torch.float64, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Count a step: the losses of its parts, 0-dim tensors by name, are averaged.

        The first call says which losses there are.
        """
        if self._names != tuple(parts[0]):
            self._names = tuple(parts[0])
            self._sums = self._sums.new_zeros(len(self._names))
            self._steps.zero_()
            self._finite_steps.zero_()
        losses = torch.stack([loss.detach() for part in parts for loss in part.values()])
        values = losses.view(len(parts), -1).mean(0)
        unbroken = values.isfinite().all() & (self._finite_steps == self._steps)
        self._sums.add_(values)
        self._finite_steps.add_(unbroken)
        self._steps.add_(1)

    def read(self) -> Reading:
        """The losses since the last reset; of no step, NaN."""
        steps = int(self._steps.item())
        means = (self._sums / steps).tolist()
        losses = dict(zip(self._names, means, strict=True))
        return Reading(losses, steps, int(self._finite_steps.item()))

    def reset(self) -> None:
        """Begin again."""
        for counted in (self._sums, self._steps, self._finite_steps):
            counted.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, if all of it is finite."""
        return {"sums": dict(zip(self._names, self._sums.tolist(), strict=True)),
                "steps": self._steps.item()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._names = tuple(state["sums"])
        self._sums = self._sums.new_tensor(list(state["sums"].values()))
        for counted in (self._steps, self._finite_steps):
            counted.fill_(state["steps"])
