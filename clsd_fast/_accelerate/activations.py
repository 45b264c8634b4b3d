"""Activations that :func:`clsd_fast.conv3x3` applies to its results."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._children import calls_its_class

RELUS = (F.relu, torch.relu)
NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
}


def activation(layer: Any) -> str | None:
    """The name of an activation that is what it was made as; None of all else."""
    if any(layer is function for function in RELUS):
        return "relu"
    name = NAMES.get(type(layer))
    return name if name and calls_its_class(layer) else None


def options_after(weight: Tensor, layer: Any) -> dict[str, Any] | None:
    """The options by which a convolution of that weight ends in a layer; None where none are."""
    name = activation(layer)
    options: dict[str, Any] = {"activation": name}
    if name == "leaky_relu":
        if not isinstance(layer.negative_slope, int | float):
            return None
        options["negative_slope"] = float(layer.negative_slope)
    if name == "prelu":
        slopes = layer.weight
        if slopes.numel() not in (1, weight.shape[0]) or slopes.dtype != weight.dtype:
            return None
        options["negative_slope"] = slopes
    return options if name else None
