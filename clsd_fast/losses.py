"""Contrastive losses between feature maps, batched over auxiliary heads.

Maps are [..., B, C, H, W]: the leading dimensions are the heads', and a target without them is
shared by all heads. Each loss is one operator call for all heads together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import distance_ratio_loss, info_nce

__all__ = ["feature_ratio", "gather_positions", "patch_nce", "pos_only", "sample_positions"]


def _check_maps(name: str, features: Tensor, target: Tensor) -> None:
    if features.dim() < 4 or features.shape[-4:] != target.shape[-4:]:
        raise ValueError(
            f"{name}: expected features and target of shape [..., B, C, H, W] that agree, "
            f"got {list(features.shape)} and {list(target.shape)}"
        )


def _rows(features: Tensor, target: Tensor) -> list[Tensor]:
    """Both maps [..., B, C, H, W] as rows [..., B, D], the elements in one order.

    The loss does not depend on the order, so it follows the layout of features: neither a
    contiguous nor a channels_last map is copied.
    """
    channels_last = features.stride(-3) == 1
    maps = (features, target)
    return [(m.movedim(-3, -1) if channels_last else m).flatten(-3) for m in maps]


def sample_positions(height: int, width: int, count: int, device: torch.device) -> Tensor:
    """``count`` distinct positions of a map as flat indices, from torch's generator of the device:
    nothing is copied there, and a captured graph draws others whenever it is replayed.

    All positions, in random order, if there are not more than ``count``.
    """
    return torch.randperm(height * width, device=device)[:count]


def gather_positions(maps: Tensor, positions: Tensor) -> Tensor:
    """The feature vectors [..., P, C] of maps [..., C, H, W] at flat positions [P]."""
    return maps.flatten(-2)[..., positions].mT


def patch_nce(
    features: Tensor,
    target: Tensor,
    positions: Tensor | None = None,
    *,
    num_patches: int = 256,
    temperature: float | Tensor = 0.07,
) -> Tensor:
    """InfoNCE between the feature vectors at sampled positions of each image.

    Equivalent to, for one image::

        query, key = features.flatten(1)[:, positions].T, target.flatten(1)[:, positions].T
        info_nce(query, key, temperature=temperature)

    A vector's positive is the target's at the same position; its negatives are the target's at
    the other positions of the same image.

    Args:
        features: maps [..., B, C, H, W].
        target: maps [B, C, H, W].
        positions: [P] flat indices in 0..H*W-1, the same for all heads and images, or None to
            draw them by :func:`sample_positions`.
        num_patches: how many to draw, if positions is None.
        temperature: divisor of the cosine similarities, > 0.

    Returns:
        The mean over heads, images and positions, 0-dim.

    Raises:
        ValueError: if the shapes do not agree, or for no positions.

    Source: Park et al., CUT (arXiv 2007.15651).
    """
    _check_maps("patch_nce", features, target)
    if positions is None:
        height, width = target.shape[-2:]
        positions = sample_positions(height, width, num_patches, target.device)
    if positions.numel() < 1:
        raise ValueError("patch_nce: expected at least 1 position, got 0")
    query, key = (gather_positions(maps, positions) for maps in (features, target))
    return info_nce(query, key, temperature=temperature)


def feature_ratio(features: Tensor, target: Tensor, *, eps: float | Tensor = 1e-7) -> Tensor:
    """Distance to the own target over the mean distance to the batch's other targets.

    Equivalent to::

        distance_ratio_loss(features.flatten(-3), target.flatten(-3), eps=eps)

    Args:
        features: maps [..., B, C, H, W], B >= 2.
        target: maps [B, C, H, W].
        eps: added to the denominator.

    Returns:
        The mean over heads and images, 0-dim.

    Raises:
        ValueError: if the shapes do not agree, or for a batch of one image.

    Source: the ratio of CSD (arXiv 2105.11683) on features, after the figure of
    arXiv 2211.15951.
    """
    _check_maps("feature_ratio", features, target)
    return distance_ratio_loss(*_rows(features, target), eps=eps)


def pos_only(features: Tensor, target: Tensor) -> Tensor:
    """The numerator of :func:`feature_ratio` alone: the control without negatives.

    Equivalent to::

        (features - target).abs().mean()

    Under autocast the maps are cast to float32.

    Args:
        features: maps [..., B, C, H, W].
        target: maps [B, C, H, W].

    Returns:
        The mean absolute difference, 0-dim.

    Raises:
        ValueError: if the shapes do not agree.
    """
    _check_maps("pos_only", features, target)
    return F.l1_loss(features, target.expand_as(features))
