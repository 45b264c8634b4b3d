"""The state of the random generators that a step draws from."""

from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Of the host's generator, and of the device's if it has its own; by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device, path: Path) -> None:
    """Go on from there. A state of a run on another type of device has none for this one.

    Raises:
        UserError: if it is none of this PyTorch.
    """
    try:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (LookupError, RuntimeError, TypeError):
        raise UserError(
            f"checkpoint: expected the state of this PyTorch's generators in {path}, got another"
        ) from None
