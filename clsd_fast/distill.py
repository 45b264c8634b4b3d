"""CLSD: contrastive-learning-based self-distillation of a student without a teacher."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._children import is_untouched
from ._layout import in_format_of
from ._projections import make_projection, means_of_pixels, project
from ._students import Described, MakeHead, are_paths, by_number, by_path, check_points
from ._taps import Taps, check_images, upscaled_shape
from .edsr import EDSR
from .losses import feature_ratio, gather_positions, pos_only, sample_positions
from .nn import (
    Conv3x3,
    ResidualBlock,
    ResidualBlocks,
    add_convolved,
    run_chains,
    run_convs,
    run_tails,
)
from .ops import _checks, info_nce
from .ops._checks import without_autocast
from .ops.l1_losses import l1_losses

CONTRASTS = ("info_nce", "patch_nce", "feature_ratio", "pos_only")
SKIPS = ("first", "tap", "none")
BASES = (None, "bilinear", "nearest")

Student = TypeVar("Student", bound=nn.Module)
#: A convolution, its input, and what is added.
_End = tuple[nn.Module, Tensor, Tensor | None]
#: Images, the student's first; its features G, if asked for; the heads' features.
_Run = tuple[list[Tensor], Tensor | None, list[Tensor]]


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


class CLSD(nn.Module, Generic[Student]):
    """A student with auxiliary heads that exist for training only.

    In ``train()``, ``model(lr, hr)`` returns a :class:`CLSDOutput`. In ``eval()``, ``model(lr)``
    is ``model.student(lr)``: no head runs. The student's weights are under ``student.*``,
    everything auxiliary under ``heads.*``.

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

    **An EDSR** is tapped by block numbers. In ``train()`` its parts are called, together with those
    of the heads: hooks of its parts run always, those of ``student`` itself in ``eval()``.

    **Any student** is tapped by paths of its modules, and its own forward runs::

        sr = student(lr)                            [B, 3, scale h, scale w] of [B, 3, h, w]
        F_t, G, F_0 = outputs of taps, input of deep, input of shallow       all [B, C, h, w]
        y_k = head(G_k)  or  head(G_k) + F.interpolate(lr, scale_factor=scale, mode=base)

    with images in 0..value_range. They are read by hooks on those modules, which do nothing outside
    of a training step, are copied and pickled with the student, and which :meth:`remove_hooks`
    takes off. A tap has to be the tensor that its module returns in one call, and not to be
    modified afterwards. Checkpoints of a student have to be ``use_reentrant=False``.

    Args:
        student: an :class:`clsd_fast.EDSR` or any other network; trained in place.
        taps: ascending block numbers of an EDSR, counted from 1; or paths of modules, as
            ``("body.4", "body.9")``. One head each.
        head_blocks: residual blocks of a head.
        contrast: kind of the contrastive loss, as above.
        ds_weight: weight of deep supervision; 0 leaves the heads' tails out.
        contrast_weight: weight of the contrastive loss; 0 leaves it out. With both 0 there are
            no heads: plain training of the student.
        skip: what a head's features are added to: ``"first"`` (the shallow features F_0),
            ``"tap"`` or ``"none"``. None is ``"first"``, or ``"tap"`` for paths without
            ``shallow``.
        share_tail: one tail for all heads instead of one each.
        projection_dim: D of the perceptrons.
        temperature: of the InfoNCE kinds.
        num_patches: positions per patch of ``patch_nce``, drawn from torch's generator.
        eps: added to the denominator of ``feature_ratio``.
        group: process group of ``torch.distributed`` whose ranks' patches are negatives of
            ``info_nce``, as many on every rank.
        deep: path of the module whose input is G; for the contrastive loss of any student.
        shallow: path of the module whose input is F_0; for skip ``"first"`` of any student.
        scale: of any student.
        channels: C of any student; None runs it once on an image of zeros [1, 3, 48, 48].
        value_range: value of white in the images of any student; an EDSR has its own.
        head: from channels and scale to the module that makes a head's image of its features, for
            any student; None is :class:`clsd_fast.nn.UpsampleTail`. ``share_tail`` makes one.
        base: the interpolated image that is added to those of the heads: None, ``"bilinear"`` or
            ``"nearest"``, as a student does that learns what this image lacks.

    Raises:
        TypeError: if student is no EDSR for taps by number, or head makes no module.
        ValueError: if an option does not fit, or a student's module gives no such features. What
            a student modifies in place is found when it is run for its channels, and in every step
            that is not compiled.

    Source: the method's paper survives in part only. The heads and their use follow it; the
    losses are reconstructed from contrastive deep supervision (arXiv 2207.05306), CUT (arXiv
    2007.15651) and CSD (arXiv 2105.11683), and are not claimed to be the paper's.
    """

    def __init__(
        self,
        student: Student,
        taps: Sequence[int] | Sequence[str] = (5, 10, 15),
        head_blocks: int = 5,
        contrast: str = "info_nce",
        *,
        ds_weight: float | Tensor = 1.0,
        contrast_weight: float | Tensor = 0.1,
        skip: str | None = None,
        share_tail: bool = False,
        projection_dim: int = 128,
        temperature: float | Tensor = 0.07,
        num_patches: int = 256,
        eps: float | Tensor = 1e-7,
        group: "torch.distributed.ProcessGroup | None" = None,
        deep: str | None = None,
        shallow: str | None = None,
        scale: int | None = None,
        channels: int | None = None,
        value_range: float = 1.0,
        head: MakeHead | None = None,
        base: str | None = None,
    ) -> None:
        super().__init__()
        if skip is None:
            skip = "tap" if are_paths(taps) and shallow is None else "first"
        _check_choices(contrast, skip, base, (ds_weight, contrast_weight))
        _check_counts(
            head_blocks=head_blocks,
            projection_dim=projection_dim,
            num_patches=num_patches,
            channels=1 if channels is None else channels,
        )
        self.student = student
        self.contrast = contrast
        self.ds_weight = ds_weight
        self.contrast_weight = contrast_weight
        self.skip = skip
        self.temperature = temperature
        self.num_patches = num_patches
        self.eps = eps
        self.group = group
        self.base = base
        has_heads = bool(ds_weight or contrast_weight)
        self.taps = cast("tuple[int, ...] | tuple[str, ...]", tuple(taps) if has_heads else ())

        if are_paths(taps):
            check_points(deep, shallow, contrast_weight, skip)
            ways = {"deep": deep, "shallow": shallow} if has_heads else {}
            paths = cast("tuple[str, ...]", self.taps)
            described = by_path(student, paths, scale, value_range, channels, head, **ways)
        else:
            others = {"deep": deep, "shallow": shallow, "channels": channels, "head": head}
            numbers = cast("Sequence[int]", taps)
            described = by_number(student, numbers, scale, value_range, **others, base=base)
        self.scale, self.value_range, self._hooks = described[:3]
        self.heads = self._make_heads(described, head_blocks, projection_dim, share_tail)
        if self._hooks:  # the last thing, so that an error before it leaves none on the student
            self._hooks.attach(student)

    def remove_hooks(self) -> Student:
        """Take the hooks off the student, which is then as it was given, and return it.

        For a student that is pickled or copied as a whole, or goes on without this module: training
        steps are over. Its state_dict never has a trace of them, and an EDSR tapped by block
        numbers has none.
        """
        if self._hooks:
            self._hooks.remove()
        return self.student

    def _make_heads(
        self, student: Described, blocks: int, projection_dim: int, share_tail: bool
    ) -> nn.ModuleDict:
        projects = bool(self.contrast_weight) and self.contrast in ("info_nce", "patch_nce")
        shared = student.make_tail() if self.ds_weight and share_tail else None
        heads: dict[str, nn.Module] = {}
        for tap in self.taps:
            tail = student.make_tail() if self.ds_weight and not share_tail else shared
            projection = make_projection(student.channels, projection_dim) if projects else None
            heads[_key(tap)] = Head(student.channels, blocks, tail, projection)
        if projects:
            heads["target_projection"] = make_projection(student.channels, projection_dim)
        return nn.ModuleDict(heads)

    def forward(self, lr: Tensor, hr: Tensor | None = None) -> CLSDOutput | Tensor:
        """Images [B, 3, h, w] in 0..value_range, and in ``train()`` their targets.

        Raises:
            ValueError: in ``train()``, if hr is missing or not [B, 3, scale h, scale w], and for
                features of a student that heads cannot have.
        """
        if not self.training:
            return self.student(lr)
        hr = self._checked_target(lr, hr)
        run = self._run_edsr if self._hooks is None else self._run_hooked
        (sr, *head_sr), deep, head_features = run(lr, hr)
        total, of_heads = l1_losses(hr, [sr, *head_sr], self.value_range)
        losses = {"rec": total}
        if head_sr:
            losses["ds"] = of_heads
            total = _add_weighted(total, losses["ds"], self.ds_weight)
        if self.contrast_weight:
            losses["cl"] = self._contrastive_loss(head_features, cast(Tensor, deep).detach())
            total = _add_weighted(total, losses["cl"], self.contrast_weight)
        losses["total"] = total
        return CLSDOutput(sr, tuple(head_sr), losses)

    def _run_edsr(self, lr: Tensor, hr: Tensor) -> _Run:
        """Of an EDSR, whose parts run together with those of the heads."""
        student, taps = cast(EDSR, self.student), cast("tuple[int, ...]", self.taps)
        shallow = student.embed(lr)
        end: nn.Module = nn.Identity()
        skip: Tensor | None = None
        if type(student) is EDSR:
            tapped, x, end = student._until_end(shallow, taps)
            skip = shallow
        else:  # whose features may be others
            tapped, x = student.features(shallow, taps)
        deep, *features = self._head_features(tapped, shallow, [(end, x, skip)])
        images = [deep, *features] if self.ds_weight else [deep]
        tails = [student.tail, *self._tails()]
        return student._reconstruct_all(images, tails, like=hr), deep, features

    def _run_hooked(self, lr: Tensor, hr: Tensor) -> _Run:
        """Of a student whose forward runs as it is."""
        found = cast(Taps, self._hooks).run(self.student, lr)
        features = self._head_features(found.tapped, found.shallow)
        images = [found.sr]
        if self.ds_weight:
            images += self._head_images(features, lr, like=hr)
        return images, found.deep, features

    def _head_images(self, features: list[Tensor], lr: Tensor, like: Tensor) -> list[Tensor]:
        images = run_tails(self._tails(), features, nn.Identity())
        for image in images:
            check_images("a head's images", image, lr, self.scale)
        if self.base is not None:
            base = F.interpolate(lr, scale_factor=self.scale, mode=self.base)
            images = [image + base for image in images]
        return [in_format_of(like, image) for image in images]

    def _head_features(
        self, tapped: list[Tensor], shallow: Tensor | None, ends: Sequence[_End] = ()
    ) -> list[Tensor]:
        """The results of ``ends``, and the features of each head; what is alike of all runs
        together, unless touched."""
        skips = [{"first": shallow, "tap": x, "none": None}[self.skip] for x in tapped]
        heads = [self._head(tap) for tap in self.taps]
        as_made = [i for i, head in enumerate(heads) if is_untouched(head, Head)]
        inner = run_chains([heads[i].blocks for i in as_made], [tapped[i] for i in as_made])
        results = run_convs(
            [*(conv for conv, _, _ in ends), *(heads[i].conv for i in as_made)],
            [*(x for _, x, _ in ends), *inner],
            [*(residual for _, _, residual in ends), *(skips[i] for i in as_made)],
        )
        found = dict(zip(as_made, results[len(ends) :], strict=True))
        calls = enumerate(zip(heads, tapped, skips, strict=True))
        of_heads = [found[i] if i in found else head(t, s) for i, (head, t, s) in calls]
        return [*results[: len(ends)], *of_heads]

    def _head(self, tap: int | str) -> Head:
        return cast(Head, self.heads[_key(tap)])

    def _tails(self) -> list[nn.Module]:
        """Of the heads, if their images are asked for."""
        return [cast(nn.Module, self._head(tap).tail) for tap in self.taps if self.ds_weight]

    def _checked_target(self, lr: Tensor, hr: Tensor | None) -> Tensor:
        if hr is None:
            raise ValueError("CLSD: expected a target hr in train(), got None")
        _checks.check_tensor("CLSD", "hr", hr)
        shape = upscaled_shape(lr, self.scale)
        if list(hr.shape) != shape:
            raise ValueError(f"CLSD: expected hr of shape {shape}, got {list(hr.shape)}")
        return hr

    def _contrastive_loss(self, head_features: list[Tensor], target: Tensor) -> Tensor:
        if self.contrast == "feature_ratio":
            return feature_ratio(torch.stack(head_features), target, eps=self.eps)
        if self.contrast == "pos_only":
            return pos_only(torch.stack(head_features), target) / self.value_range
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


def _key(tap: int | str) -> str:
    """Of a head: names of modules have no dots."""
    return str(tap).replace(".", "/")


def _check_choices(
    contrast: str, skip: str, base: str | None, weights: tuple[float | Tensor, ...]
) -> None:
    if contrast not in CONTRASTS:
        raise ValueError(f"CLSD: expected contrast in {', '.join(CONTRASTS)}, got {contrast!r}")
    if skip not in SKIPS:
        raise ValueError(f"CLSD: expected skip in {', '.join(SKIPS)}, got {skip!r}")
    if base not in BASES:
        raise ValueError(f"CLSD: expected base in None, bilinear, nearest, got {base!r}")
    for weight in weights:
        if not _checks.number("CLSD", "weights", weight) >= 0:  # so that nan is refused too
            raise ValueError(f"CLSD: expected weights >= 0, got {weight}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if _checks.integer("CLSD", name, count) < 1:
            raise ValueError(f"CLSD: expected {name} >= 1, got {count}")
