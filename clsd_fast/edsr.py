"""The student: EDSR."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ._children import is_untouched
from ._layout import in_format_of
from ._tail_axes import FACTORS, STAGES
from .backend import has_kernel, is_recorded
from .nn import (
    Conv3x3,
    MeanShift,
    ResidualBlock,
    ResidualBlocks,
    UpsampleTail,
    add_convolved,
    run_tails,
)
from .ops import _checks

#: Mean colour of DIV2K, R G B, at value range 1.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class EDSR(nn.Module):
    """Enhanced deep residual network for single-image super-resolution.

    Args:
        scale: 2, 3 or 4.
        num_blocks: residual blocks; the defaults are EDSR-baseline.
        channels: of all feature maps.
        res_scale: factor of each residual branch.
        value_range: value of white, 255.0 or 1.0.
        collapse: whether to compose the convolutions of the tail, None where there is a
            kernel for that (:class:`clsd_fast.nn.UpsampleTail`).

    The state_dict has the keys and shapes of EDSR-PyTorch. Trainable parameters at the defaults:
    1,369,859 (x2), 1,554,499 (x3), 1,517,571 (x4).

    Raises:
        ValueError: for another scale, sizes below 1, and a white that is no positive number.

    Source: Lim et al. (arXiv 1707.02921).
    """

    def __init__(
        self,
        scale: int,
        num_blocks: int = 16,
        channels: int = 64,
        res_scale: float | Tensor = 1.0,
        value_range: float = 255.0,
        *,
        collapse: bool | None = None,
    ) -> None:
        super().__init__()
        scale = _checks.integer("EDSR", "scale", scale)
        num_blocks = _checks.integer("EDSR", "num_blocks", num_blocks)
        channels = _checks.integer("EDSR", "channels", channels)
        _checks.number("EDSR", "res_scale", res_scale)
        _checks.number("EDSR", "value_range", value_range)
        if not 0 < value_range < math.inf:
            raise ValueError(f"EDSR: expected a finite value_range > 0, got {value_range}")
        if scale not in STAGES:
            raise ValueError(f"EDSR: expected scale in {FACTORS}, got {scale}")
        if num_blocks < 1 or channels < 1:
            got = f"{num_blocks} blocks of {channels} channels"
            raise ValueError(f"EDSR: expected at least 1 block of 1 channel, got {got}")
        self.scale = scale
        self.num_blocks = num_blocks
        self.channels = channels
        self.res_scale = res_scale
        self.value_range = value_range
        self.collapse = collapse
        self.sub_mean = MeanShift(value_range, RGB_MEAN, sign=-1)
        self.add_mean = MeanShift(value_range, RGB_MEAN, sign=1)
        self.head = nn.Sequential(Conv3x3(3, channels))
        blocks = [ResidualBlock(channels, res_scale) for _ in range(num_blocks)]
        self.body = ResidualBlocks(*blocks, Conv3x3(channels, channels))
        self.tail = self.make_tail()

    def make_tail(self) -> UpsampleTail:
        """A new tail like this student's: [B, C, h, w] to [B, 3, scale h, scale w]."""
        return UpsampleTail(self.scale, self.channels, collapse=self.collapse)

    def forward(self, lr: Tensor) -> Tensor:
        """Low-resolution images [B, 3, h, w] in 0..value_range to [B, 3, scale h, scale w].

        Raises:
            ValueError: if lr is not [B, 3, h, w].
        """
        shallow = self.embed(lr)
        _, deep = self.features(shallow)
        return self.reconstruct(deep, like=lr)

    def embed(self, lr: Tensor) -> Tensor:
        """The shallow features F_0, [B, C, h, w], of images [B, 3, h, w].

        On native kernels all features are channels_last whatever the images are: three channels
        are sooner transposed than 64.
        """
        if is_recorded(lr):
            return self.head(self.sub_mean(lr))
        _checks.check_tensor("EDSR", "images", lr)
        if lr.dim() != 4 or lr.shape[1] != 3:
            raise ValueError(f"EDSR: expected images of shape [B, 3, h, w], got {list(lr.shape)}")
        if has_kernel("conv3x3", lr):
            lr = lr.contiguous(memory_format=torch.channels_last)
        return self.head(self.sub_mean(lr))

    def features(self, shallow: Tensor, taps: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """The features after each block of ``taps`` (counted from 1), and the deep features G.

        G is the body's end with the global skip, [B, C, h, w], from which the image is made.

        Raises:
            ValueError: for taps if the body is no :class:`clsd_fast.nn.ResidualBlocks` any more.
        """
        tapped, x, end = self._until_end(shallow, taps)
        return tapped, add_convolved(shallow, end, x)

    def _until_end(
        self, shallow: Tensor, taps: Sequence[int]
    ) -> tuple[list[Tensor], Tensor, nn.Module]:
        """:meth:`features` before the end of G, which is ``shallow + end(x)``."""
        body = cast(nn.Module, self.body)  # which it is at least, whatever has taken its place
        if is_untouched(body, ResidualBlocks):
            x, tapped = self.body.run(shallow, taps, stop=-1)
            return tapped, x, self.body[-1]
        if not taps:
            return [], body(shallow), nn.Identity()
        if not isinstance(body, ResidualBlocks):
            got = type(body).__name__
            raise ValueError(f"EDSR: expected a body of ResidualBlocks for taps, got {got}")
        maps: dict[int, Tensor | None] = dict.fromkeys(taps)
        x = body(shallow, maps)
        return [cast(Tensor, maps[tap]) for tap in taps], x, nn.Identity()

    def reconstruct(self, deep: Tensor, tail: nn.Module | None = None, *, like: Tensor) -> Tensor:
        """The image [B, 3, scale h, scale w] from deep features, by another tail if given.

        It has the memory format of ``like``.
        """
        return self._reconstruct_all([deep], [self.tail if tail is None else tail], like)[0]

    def _reconstruct_all(
        self, deep: Sequence[Tensor], tails: Sequence[nn.Module], like: Tensor
    ) -> list[Tensor]:
        """The images of several features, each by its own tail."""
        images = run_tails(tails, deep, self.add_mean)
        return images if is_recorded(like) else [in_format_of(like, image) for image in images]
