"""CLSD: contrastive-learning-based self-distillation of a student without a teacher."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ._children import is_untouched
from ._projections import make_projection, means_of_pixels, project
from .edsr import EDSR
from .losses import feature_ratio, gather_positions, pos_only, sample_positions
from .nn import Conv3x3, ResidualBlock, ResidualBlocks, add_convolved, run_chains, run_convs
from .ops import info_nce
from .ops._checks import without_autocast
from .ops.l1_losses import l1_losses

CONTRASTS = ("info_nce", "patch_nce", "feature_ratio", "pos_only")
SKIPS = ("first", "tap", "none")


class CLSDOutput(NamedTuple):
    """What a training step of :class:`CLSD` gives.

    Attributes:
        sr: the student's images [B, 3, scale h, scale w].
        head_sr: each head's images; empty if ``ds_weight`` is 0.
        losses: 0-dim tensors at value range 1: ``rec``, ``ds`` (if ``ds_weight`` > 0), ``cl`` (if
            ``contrast_weight`` > 0) and ``total``, the weighted sum to call ``backward`` on.
    """

    sr: Tensor
    head_sr: tuple[Tensor, ...]
    losses: dict[str, Tensor]


class Head(nn.Module):
    """One auxiliary head: residual blocks and a convolution, and what its losses need.

    Args:
        channels: of the student's features.
        num_blocks: residual blocks.
        tail: from the head's features to an image, or None.
        projection: from feature vectors [..., C] to [..., D], or None.
    """

    def __init__(
        self, channels: int, num_blocks: int, tail: nn.Module | None, projection: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = ResidualBlocks(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.conv = Conv3x3(channels, channels)
        self.tail = tail
        self.projection = projection

    def forward(self, tapped: Tensor, skip: Tensor | None) -> Tensor:
        """The head's features G_k [B, C, h, w]."""
        return add_convolved(skip, self.conv, self.blocks(tapped))


class CLSD(nn.Module):
    """A student with auxiliary heads that exist for training only.

    In ``train()``, ``model(lr, hr)`` returns a :class:`CLSDOutput`. In ``eval()``, ``model(lr)``
    is ``model.student(lr)``: no head runs. The student's weights are under ``student.*``,
    everything auxiliary under ``heads.*``. In ``train()`` the student's parts are called, between
    which the heads run: hooks of its parts run always, those of ``student`` itself in ``eval()``.

    What ships is ``model.student``: save or export that. ``torch.export`` of the whole model in
    ``eval()`` computes the same, but carries the heads' weights along as unused inputs.

    With y the target, F_t the features after block t, G the student's deep features and, for each
    tap t_k, head features G_k and image y_k::

        rec = mean|sr - y|    ds = mean over k of mean|y_k - y|    (over value_range)
        total = rec + ds_weight * ds + contrast_weight * cl

    ========== =====================================================================
    contrast   cl, the mean over the heads
    ========== =====================================================================
    info_nce   InfoNCE of g_k(pool(G_k)) and g(pool(sg(G))), negatives: other patches
               of the batch; 0 for a batch of one
    patch_nce  the same per position, negatives: other positions of the patch
    feature_ratio  distance of G_k to sg(G) over that to the batch's others; refuses a
               batch of one
    pos_only   mean|G_k - sg(G)| over value_range, the control without negatives
    ========== =====================================================================

    g are two-layer perceptrons, sg stops the gradient. Taps are not detached: the heads'
    gradients reach the student.

    Args:
        student: an :class:`clsd_fast.EDSR`; trained in place.
        taps: ascending block numbers, counted from 1, one head each.
        head_blocks: residual blocks of a head.
        contrast: kind of the contrastive loss, as above.
        ds_weight: weight of deep supervision; 0 leaves the heads' tails out.
        contrast_weight: weight of the contrastive loss; 0 leaves it out. With both 0 there are
            no heads: plain training of the student.
        skip: what a head's features are added to: ``"first"`` (the shallow features F_0),
            ``"tap"`` or ``"none"``.
        share_tail: one tail for all heads instead of one each.
        projection_dim: D of the perceptrons.
        temperature: of the InfoNCE kinds.
        num_patches: positions per patch of ``patch_nce``, drawn from torch's generator.
        eps: added to the denominator of ``feature_ratio``.
        group: process group of ``torch.distributed`` whose ranks' patches are negatives of
            ``info_nce``, as many on every rank.

    Raises:
        TypeError: if student is no EDSR.
        ValueError: if an option does not fit.

    Source: the method's paper survives in part only. The heads and their use follow it; the
    losses are reconstructed from contrastive deep supervision (arXiv 2207.05306), CUT (arXiv
    2007.15651) and CSD (arXiv 2105.11683), and are not claimed to be the paper's.
    """

    def __init__(
        self,
        student: EDSR,
        taps: Sequence[int] = (5, 10, 15),
        head_blocks: int = 5,
        contrast: str = "info_nce",
        *,
        ds_weight: float | Tensor = 1.0,
        contrast_weight: float | Tensor = 0.1,
        skip: str = "first",
        share_tail: bool = False,
        projection_dim: int = 128,
        temperature: float | Tensor = 0.07,
        num_patches: int = 256,
        eps: float | Tensor = 1e-7,
        group: "torch.distributed.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        _check_student(student, taps)
        _check_choices(contrast, skip, (ds_weight, contrast_weight))
        _check_counts(
            head_blocks=head_blocks, projection_dim=projection_dim, num_patches=num_patches
        )
        self.student = student
        self.taps = tuple(taps) if ds_weight or contrast_weight else ()
        self.contrast = contrast
        self.ds_weight = ds_weight
        self.contrast_weight = contrast_weight
        self.skip = skip
        self.temperature = temperature
        self.num_patches = num_patches
        self.eps = eps
        self.group = group

        channels = student.channels
        projects = bool(contrast_weight) and contrast in ("info_nce", "patch_nce")
        shared = student.make_tail() if ds_weight and share_tail else None
        heads: dict[str, nn.Module] = {}
        for tap in self.taps:
            tail = student.make_tail() if ds_weight and not share_tail else shared
            projection = make_projection(channels, projection_dim) if projects else None
            heads[str(tap)] = Head(channels, head_blocks, tail, projection)
        if projects:
            heads["target_projection"] = make_projection(channels, projection_dim)
        self.heads = nn.ModuleDict(heads)

    def forward(self, lr: Tensor, hr: Tensor | None = None) -> CLSDOutput | Tensor:
        """Images [B, 3, h, w] in 0..value_range, and in ``train()`` their targets.

        Raises:
            ValueError: in ``train()``, if hr is missing or not [B, 3, scale h, scale w].
        """
        if not self.training:
            return self.student(lr)
        hr = self._checked_target(lr, hr)
        shallow = self.student.embed(lr)
        deep, *head_features = self._features(shallow)
        outputs: list[Tensor] = [deep]
        tails: list[nn.Module] = [self.student.tail]
        if self.ds_weight:
            outputs += head_features
            tails += [cast(nn.Module, self._head(tap).tail) for tap in self.taps]
        sr, *head_sr = self.student._reconstruct_all(outputs, tails, like=hr)
        total, of_heads = l1_losses(hr, [sr, *head_sr], self.student.value_range)
        losses = {"rec": total}
        if head_sr:
            losses["ds"] = of_heads
            total = _add_weighted(total, losses["ds"], self.ds_weight)
        if self.contrast_weight:
            losses["cl"] = self._contrastive_loss(head_features, deep.detach())
            total = _add_weighted(total, losses["cl"], self.contrast_weight)
        losses["total"] = total
        return CLSDOutput(sr, tuple(head_sr), losses)

    def _features(self, shallow: Tensor) -> list[Tensor]:
        """Of the student and of each head; what is alike of all runs together, unless touched."""
        end: nn.Module = nn.Identity()
        shallow_skip: Tensor | None = None
        if type(self.student) is EDSR:
            tapped, x, end = self.student._until_end(shallow, self.taps)
            shallow_skip = shallow
        else:  # whose features may be others
            tapped, x = self.student.features(shallow, self.taps)
        skips = [{"first": shallow, "tap": x, "none": None}[self.skip] for x in tapped]
        heads = [self._head(tap) for tap in self.taps]
        as_made = [i for i, head in enumerate(heads) if is_untouched(head, Head)]
        inner = run_chains([heads[i].blocks for i in as_made], [tapped[i] for i in as_made])
        deep, *ends = run_convs(
            [end, *(heads[i].conv for i in as_made)],
            [x, *inner],
            [shallow_skip, *(skips[i] for i in as_made)],
        )
        found = dict(zip(as_made, ends, strict=True))
        calls = enumerate(zip(heads, tapped, skips, strict=True))
        return [deep, *(found[i] if i in found else head(t, s) for i, (head, t, s) in calls)]

    def _head(self, tap: int) -> Head:
        return cast(Head, self.heads[str(tap)])

    def _checked_target(self, lr: Tensor, hr: Tensor | None) -> Tensor:
        if hr is None:
            raise ValueError("CLSD: expected a target hr in train(), got None")
        scale = self.student.scale
        shape = [*lr.shape[:-2], scale * lr.shape[-2], scale * lr.shape[-1]]
        if list(hr.shape) != shape:
            raise ValueError(f"CLSD: expected hr of shape {shape}, got {list(hr.shape)}")
        return hr

    def _contrastive_loss(self, head_features: list[Tensor], target: Tensor) -> Tensor:
        if self.contrast == "feature_ratio":
            return feature_ratio(torch.stack(head_features), target, eps=self.eps)
        if self.contrast == "pos_only":
            return pos_only(torch.stack(head_features), target) / self.student.value_range
        if self.contrast == "info_nce":
            vectors = means_of_pixels([*head_features, target])
        else:
            height, width = target.shape[-2:]
            positions = sample_positions(height, width, self.num_patches, target.device)
            vectors = torch.stack(
                [gather_positions(x, positions) for x in (*head_features, target)]
            )
        with without_autocast(target):
            projected = project(self._projections(), vectors)
            query, key = projected.split([len(self.taps), 1])
            # The positions of a patch are contrasted with each other alone.
            group = self.group if self.contrast == "info_nce" else None
            return info_nce(query, key.squeeze(0), temperature=self.temperature, group=group)

    def _projections(self) -> list[nn.Sequential]:
        """Of the heads and of the target."""
        of_heads = [self._head(tap).projection for tap in self.taps]
        return cast("list[nn.Sequential]", [*of_heads, self.heads["target_projection"]])


def _add_weighted(total: Tensor, loss: Tensor, weight: float | Tensor) -> Tensor:
    if isinstance(weight, Tensor):  # which as alpha would lose its gradient
        return total + weight * loss
    return total.add(loss, alpha=weight)


def _check_student(student: nn.Module, taps: Sequence[int]) -> None:
    if not isinstance(student, EDSR):
        raise TypeError(f"CLSD: expected student to be an EDSR, got {type(student).__name__}")
    for tap in taps:
        if not 1 <= tap <= student.num_blocks:
            raise ValueError(f"CLSD: expected taps in 1..{student.num_blocks}, got {tap}")
    if not taps or list(taps) != sorted(set(taps)):
        raise ValueError(f"CLSD: expected ascending, distinct taps, got {list(taps)}")


def _check_choices(contrast: str, skip: str, weights: tuple[float | Tensor, ...]) -> None:
    if contrast not in CONTRASTS:
        raise ValueError(f"CLSD: expected contrast in {', '.join(CONTRASTS)}, got {contrast!r}")
    if skip not in SKIPS:
        raise ValueError(f"CLSD: expected skip in {', '.join(SKIPS)}, got {skip!r}")
    for weight in weights:
        if not weight >= 0:  # so that nan is refused too
            raise ValueError(f"CLSD: expected weights >= 0, got {weight}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"CLSD: expected {name} >= 1, got {count}")
