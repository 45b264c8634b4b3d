"""Contrastive losses as functions of feature maps, and as modules of maps and of rows.

Maps are [..., B, C, H, W]: the leading dimensions are the heads', and a target without them is
shared by all heads. Each loss is one operator call for all heads together. The modules are public
as those of :mod:`clsd_fast.nn`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._fx import leaf
from .ops import _checks
from .ops.distance_ratio_loss import distance_ratio_loss
from .ops.info_nce import info_nce

__all__ = ["feature_ratio", "gather_positions", "patch_nce", "pos_only", "sample_positions"]


def _check_maps(name: str, features: Tensor, target: Tensor) -> None:
    _checks.check_tensor(name, "features", features)
    _checks.check_tensor(name, "target", target)
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
    reduction: str = "mean",
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
        reduction: ``"mean"`` or ``"sum"`` over heads, images and positions, or ``"none"``.

    Returns:
        A 0-dim tensor, or [..., B, P] for ``reduction="none"``.

    Raises:
        ValueError: if the shapes do not agree, for no positions, or for another reduction.

    Source: Park et al., CUT (arXiv 2007.15651).
    """
    _check_maps("patch_nce", features, target)
    if positions is None:
        height, width = target.shape[-2:]
        positions = sample_positions(height, width, num_patches, target.device)
    if positions.numel() < 1:
        raise ValueError("patch_nce: expected at least 1 position, got 0")
    query, key = (gather_positions(maps, positions) for maps in (features, target))
    return info_nce(query, key, temperature=temperature, reduction=reduction)


def feature_ratio(
    features: Tensor, target: Tensor, *, eps: float | Tensor = 1e-7, reduction: str = "mean"
) -> Tensor:
    """Distance to the own target over the mean distance to the batch's other targets.

    Equivalent to::

        distance_ratio_loss(features.flatten(-3), target.flatten(-3), eps=eps)

    Args:
        features: maps [..., B, C, H, W], B >= 2.
        target: maps [B, C, H, W].
        eps: added to the denominator.
        reduction: ``"mean"`` or ``"sum"`` over heads and images, or ``"none"``.

    Returns:
        A 0-dim tensor, or [..., B] for ``reduction="none"``.

    Raises:
        ValueError: if the shapes do not agree, for a batch of one image, or for another reduction.

    Source: the ratio of CSD (arXiv 2105.11683) on features, after the figure of
    arXiv 2211.15951.
    """
    _check_maps("feature_ratio", features, target)
    return distance_ratio_loss(*_rows(features, target), eps=eps, reduction=reduction)


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


class _Loss(nn.Module):
    """What the losses as modules share: their options are attributes, and show in ``print``."""

    _OPTIONS: tuple[str, ...]

    def __init__(self, reduction: str, loss_weight: float | Tensor) -> None:
        super().__init__()
        self.reduction = reduction
        _checks.number(type(self).__name__, "loss_weight", loss_weight)
        self.loss_weight = loss_weight

    def extra_repr(self) -> str:
        options = {
            name: getattr(self, name) for name in (*self._OPTIONS, "reduction", "loss_weight")
        }
        shown = {k: v.detach() if isinstance(v, Tensor) else v for k, v in options.items()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def _check_rows(self, of_maps: type[nn.Module], **rows: Tensor) -> None:
        """Refuse maps: as rows, each line of pixels would be contrasted with the others."""
        for name, tensor in rows.items():
            _checks.check_tensor(type(self).__name__, name, tensor)
            if tensor.dim() > 3:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} of shape [N, D] or [heads, N, D], "
                    f"got {list(tensor.shape)} ({of_maps.__name__} takes maps [B, C, H, W])"
                )


class _RatioLoss(_Loss):
    _OPTIONS = ("eps",)

    def __init__(
        self,
        eps: float | Tensor = 1e-7,
        reduction: str = "mean",
        *,
        loss_weight: float | Tensor = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.eps = eps


class InfoNCELoss(_Loss):
    """:func:`clsd_fast.info_nce` with fixed options.

    Args:
        temperature: divisor of the cosine similarities, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        learn_temperature: make ``temperature`` a parameter, of shape [], that starts at that value.
            Nothing keeps it positive: give it a small learning rate.
        loss_weight: factor of the result.
    """

    _OPTIONS = ("temperature",)

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        reduction: str = "mean",
        *,
        learn_temperature: bool = False,
        loss_weight: float | Tensor = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.temperature = temperature
        if learn_temperature:
            self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    @leaf
    def forward(
        self,
        query: Tensor,
        positive_key: Tensor,
        negative_keys: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        group: "torch.distributed.ProcessGroup | None" = None,
    ) -> Tensor:
        """``loss_weight * info_nce(...)`` of rows [N, D] or [heads, N, D].

        Raises:
            ValueError: as of :func:`clsd_fast.info_nce`, and for maps.
        """
        self._check_rows(PatchNCELoss, query=query, positive_key=positive_key)
        return self.loss_weight * info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            mask=mask,
            labels=labels,
            group=group,
        )


class DistanceRatioLoss(_RatioLoss):
    """:func:`clsd_fast.distance_ratio_loss` with fixed options.

    Args:
        eps: added to the denominator.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        loss_weight: factor of the result.
    """

    @leaf
    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor | None = None) -> Tensor:
        """``loss_weight * distance_ratio_loss(...)`` of rows [N, D] or [heads, N, D].

        Raises:
            ValueError: as of :func:`clsd_fast.distance_ratio_loss`, and for maps.
        """
        self._check_rows(FeatureRatioLoss, anchor=anchor, positive=positive)
        return self.loss_weight * distance_ratio_loss(
            anchor, positive, negatives, eps=self.eps, reduction=self.reduction
        )


class PatchNCELoss(_Loss):
    """:func:`clsd_fast.losses.patch_nce` with fixed options: InfoNCE between maps, by position.

    Args:
        num_patches: positions that each call draws.
        temperature: divisor of the cosine similarities, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        loss_weight: factor of the result.
    """

    _OPTIONS = ("num_patches", "temperature")

    def __init__(
        self,
        num_patches: int = 256,
        temperature: float | Tensor = 0.07,
        reduction: str = "mean",
        *,
        loss_weight: float | Tensor = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.num_patches = num_patches
        self.temperature = temperature

    @leaf
    def forward(self, features: Tensor, target: Tensor, positions: Tensor | None = None) -> Tensor:
        """``loss_weight * patch_nce(...)`` of maps [..., B, C, H, W].

        The target gets a gradient, too: detach one that is not to be trained.
        """
        return self.loss_weight * patch_nce(
            features,
            target,
            positions,
            num_patches=self.num_patches,
            temperature=self.temperature,
            reduction=self.reduction,
        )


class FeatureRatioLoss(_RatioLoss):
    """:func:`clsd_fast.losses.feature_ratio` with fixed options: a ratio of distances of maps.

    Args:
        eps: added to the denominator.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        loss_weight: factor of the result.
    """

    @leaf
    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """``loss_weight * feature_ratio(...)`` of maps [..., B, C, H, W] with B >= 2.

        The target gets a gradient, too: detach one that is not to be trained.
        """
        return self.loss_weight * feature_ratio(
            features, target, eps=self.eps, reduction=self.reduction
        )
