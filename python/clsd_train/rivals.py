"""The methods with a teacher that CLSD is compared with: FAKD and LFD.

A frozen EDSR looks at the same images and the student learns from its features. As with
:class:`clsd_fast.CLSD`, what ships is ``model.student``.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clsd_fast import EDSR, CLSDOutput, pairwise_similarity

Model = TypeVar("Model", bound="Distillation")

# Weights of features are stated beside errors of images in this range, as public code has them.
PUBLIC_RANGE = 255.0


class Distillation(nn.Module):
    """A student and a frozen teacher.

    In ``train()``, ``model(lr, hr)`` returns a :class:`clsd_fast.CLSDOutput` without head images.
    In ``eval()``, ``model(lr)`` is ``model.student(lr)``. The teacher follows the module to a
    device or memory format, and is in no other way a part of it: neither in ``parameters()`` nor
    in ``state_dict()``, nor in training mode.

    Args:
        student: trained in place.
        teacher: of the same scale, with any blocks, channels and value range.
        depths: ascending shares of the blocks, in 0..1, after which features are compared:
            those of n blocks are after block ``int(n * depth)``, counted from 1.

    Raises:
        ValueError: if the scales differ, or depths do not tell blocks apart.
    """

    def __init__(self, student: EDSR, teacher: EDSR, depths: Sequence[float]) -> None:
        super().__init__()
        if student.scale != teacher.scale:
            raise ValueError(
                f"{type(self).__name__}: expected a teacher of scale {student.scale}, "
                f"got {teacher.scale}"
            )
        self.student = student
        self.taps = _blocks(student.num_blocks, depths)
        self._teacher_taps = _blocks(teacher.num_blocks, depths)
        self._outside = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> EDSR:
        return self._outside[0]

    def _apply(self: Model, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, lr: Tensor, hr: Tensor | None = None) -> CLSDOutput | Tensor:
        """Images [B, 3, h, w] in 0..value_range, and in ``train()`` their targets.

        Raises:
            ValueError: in ``train()``, if hr is missing.
        """
        if not self.training:
            return self.student(lr)
        if hr is None:
            raise ValueError(f"{type(self).__name__}: expected a target hr in train(), got None")
        student = self.student
        maps, deep = student.features(student.embed(lr), self.taps)
        sr = student.reconstruct(deep, like=hr)
        white = student.value_range
        losses = {"rec": F.l1_loss(sr, hr) / white}
        with torch.no_grad():
            factor = self.teacher.value_range / white
            shallow = self.teacher.embed(lr * factor)
            targets, deep = self.teacher.features(shallow, self._teacher_taps)
        return CLSDOutput(sr, (), self._add_losses(losses, sr, deep, maps, targets))

    def _add_losses(
        self,
        losses: dict[str, Tensor],
        sr: Tensor,
        deep: Tensor,
        maps: list[Tensor],
        targets: list[Tensor],
    ) -> dict[str, Tensor]:
        """The losses with the method's own and their ``total``.

        Args:
            losses: has ``rec``, the student's L1 loss at value range 1.
            sr: the student's images.
            deep: the teacher's deep features, of which its images are made.
            maps: the student's features, [B, C, h, w] each.
            targets: the teacher's features at the same depths.
        """
        raise NotImplementedError


class FAKD(Distillation):
    """Feature-affinity-based knowledge distillation.

    With y the target, t the teacher's image and, at each depth, S and T the [B, h w, h w] tables
    of cosine similarity between all positions of the student's and the teacher's features::

        rec = mean|sr - y|    teacher = mean|sr - t|    (over value_range)
        affinity = sum over depths of mean|S - T|
        total = rec / 2 + teacher / 2 + affinity_weight / 255 * affinity

    Args:
        student: trained in place.
        teacher: frozen.
        depths: as of :class:`Distillation`.
        affinity_weight: as in the public code, whose errors are of images in 0..255.

    Source: He et al. (ICIP 2020) and its public code. There the last features are the body's end
    with the skip connection; here they are those after the last block.
    """

    def __init__(
        self,
        student: EDSR,
        teacher: EDSR,
        depths: Sequence[float] = (1 / 3, 2 / 3, 1.0),
        affinity_weight: float = 10.0,
    ) -> None:
        super().__init__(student, teacher, depths)
        self.affinity_weight = affinity_weight

    def _add_losses(
        self,
        losses: dict[str, Tensor],
        sr: Tensor,
        deep: Tensor,
        maps: list[Tensor],
        targets: list[Tensor],
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            theirs = self.teacher.reconstruct(deep, like=sr) / self.teacher.value_range
        losses["teacher"] = F.l1_loss(sr / self.student.value_range, theirs)
        differences = [
            F.l1_loss(spatial_similarity(ours), spatial_similarity(target))
            for ours, target in zip(maps, targets, strict=True)
        ]
        losses["affinity"] = torch.stack(differences).sum()
        images = (losses["rec"] + losses["teacher"]) / 2
        losses["total"] = images + self.affinity_weight / PUBLIC_RANGE * losses["affinity"]
        return losses


class LFD(Distillation):
    """Local-selective feature distillation, **reconstructed**: its formula was not available.

    That the student's features, through a 1x1 convolution, follow the teacher's where the two
    differ most is the paper's; how much more is not known, nor at which depths. With d the
    absolute differences [B, C, h, w] at a depth, the teacher's features taken to the student's
    value range, their mean m [B, h, w] over the channels, and attention without gradient::

        attention = h w softmax over positions of (m / mean(m))
        feature = mean over depths of mean(attention * d)    (over value_range)
        total = rec + feature_weight * feature

    Args:
        student: trained in place.
        teacher: frozen.
        depths: as of :class:`Distillation`.
        feature_weight: of the features' loss.

    Source: Park and Kwak (arXiv 2111.10988).
    """

    def __init__(
        self,
        student: EDSR,
        teacher: EDSR,
        depths: Sequence[float] = (1 / 3, 2 / 3, 1.0),
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, depths)
        self.feature_weight = feature_weight
        convs = {str(tap): nn.Conv2d(student.channels, teacher.channels, 1) for tap in self.taps}
        self.heads = nn.ModuleDict(convs)

    def _add_losses(
        self,
        losses: dict[str, Tensor],
        sr: Tensor,
        deep: Tensor,
        maps: list[Tensor],
        targets: list[Tensor],
    ) -> dict[str, Tensor]:
        white = self.student.value_range
        factor = white / self.teacher.value_range
        errors = [
            selective_error(_convolve(self.heads[str(tap)], ours), target * factor)
            for tap, ours, target in zip(self.taps, maps, targets, strict=True)
        ]
        losses["feature"] = torch.stack(errors).mean() / white
        losses["total"] = losses["rec"] + self.feature_weight * losses["feature"]
        return losses


def spatial_similarity(features: Tensor) -> Tensor:
    """Cosine similarity [B, h w, h w] between all positions of features [B, C, h, w]."""
    rows = features.flatten(2).mT
    return pairwise_similarity(rows, rows)


def selective_error(features: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two maps [B, C, h, w], the more of a position the larger it is.

    As of :class:`LFD`.
    """
    differences = (features - target).abs()
    with torch.no_grad():
        means = differences.mean(1, dtype=torch.float32).flatten(1)
        # Two maps that are equal have a mean of 0.
        shares = means / means.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        attention = shares.softmax(1).mul(means.shape[1]).view(differences[:, :1].shape)
    return (attention * differences).mean()


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution whose parameters stay float32 beside 16-bit features."""
    weight, bias = (parameter.to(x.dtype) for parameter in conv.parameters())
    return F.conv2d(x, weight, bias)


def _blocks(num_blocks: int, depths: Sequence[float]) -> tuple[int, ...]:
    """The blocks, counted from 1, at shares of the depth."""
    blocks = tuple(max(int(num_blocks * depth), 1) for depth in depths)
    if list(blocks) != sorted(set(blocks)):
        raise ValueError(
            f"config: teacher.depths: expected ascending shares that tell {num_blocks} blocks "
            f"apart, got blocks {', '.join(map(str, blocks))}"
        )
    return blocks
