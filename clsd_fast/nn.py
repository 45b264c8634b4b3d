"""Modules over the fused operators, with the parameter names of EDSR-PyTorch, and losses.

Those with children are one operator while a call of each child would run nothing but the layer that
it was made as. Where one has a hook, as of pruning or an observer, or was replaced or parametrised,
the children run themselves. Global hooks of all modules do not count. In programs that are recorded
for others (``backend.is_recorded``) all children run, and convolutions are those of ``torch.nn``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from ._children import are_untouched, is_untouched
from ._fx import leaf
from ._tail_axes import FACTORS, STAGES
from .backend import has_kernel, is_recorded
from .losses import DistanceRatioLoss, FeatureRatioLoss, InfoNCELoss, PatchNCELoss
from .ops import (
    conv3x3,
    pixel_shuffle_upsample,
    residual_block,
    residual_blocks,
    upsample_tail,
)
from .ops._checks import without_autocast
from .ops.conv3x3 import checked_activation
from .ops.conv3x3s import conv3x3s, kind_of_convolution
from .ops.residual_blocks import Parameters as ChainParameters
from .ops.residual_blocks import kind_of_chain, residual_chains
from .ops.upsample_tails import Parameters as TailParameters
from .ops.upsample_tails import kind_of_tail, upsample_tails
from .reference.conv import activate

__all__ = [
    "Conv3x3",
    "DistanceRatioLoss",
    "FeatureRatioLoss",
    "InfoNCELoss",
    "MeanShift",
    "PatchNCELoss",
    "PixelShuffleUpsampler",
    "ResidualBlock",
    "ResidualBlocks",
    "UpsampleTail",
]


#: Modules that one call of an operator stands for at most, as a launch takes so many convolutions.
TOGETHER = 8


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(in_channels, out_channels, 3, padding=1)`` on :func:`clsd_fast.conv3x3`.

    Args:
        in_channels: C.
        out_channels: K.

    Parameters, initialisation and state_dict are those of ``nn.Conv2d``; hooks run as usual. Where
    its padding, stride, dilation or groups are no longer those, it is an ``nn.Conv2d``.
    """

    _AS_MADE = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def is_as_made(self) -> bool:
        return _convolves_as(self, self._AS_MADE)

    @leaf
    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        activation: str | None = None,
        negative_slope: float | Tensor = 0.01,
    ) -> Tensor:
        """[N, C, H, W] to [N, K, H, W]; ``residual`` is added if given, then the activation is
        applied, as :func:`clsd_fast.conv3x3` has them."""
        if self.is_as_made() and not self._is_recorded(x):
            options: Any = {"activation": activation, "negative_slope": negative_slope}
            return conv3x3(x, self.weight, self.bias, residual=residual, **options)
        last = checked_activation("conv3x3", x, self.weight, False, activation, negative_slope)
        y = super().forward(x)
        return activate(y if residual is None else residual + y, *last)

    def _is_recorded(self, x: object) -> bool:
        """As an ``nn.Conv2d``, which rounds no float32 parameters to the dtype of 16-bit images."""
        rounds = isinstance(x, Tensor) and x.dtype != self.weight.dtype
        return is_recorded(x) and not rounds


def _convolves_as(conv: nn.Conv2d, options: tuple) -> bool:
    own = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return (*own, conv.padding_mode) == options and "_conv_forward" not in conv.__dict__


def add_convolved(residual: Tensor | None, conv: nn.Module, x: Tensor) -> Tensor:
    """``residual + conv(x)``, one operator where that is a :class:`Conv3x3` and nothing else."""
    if residual is None:
        return conv(x)
    return conv(x, residual) if is_untouched(conv, Conv3x3) else residual + conv(x)


class ResidualBlock(nn.Module):
    """``x + res_scale * conv(relu(conv(x)))`` on :func:`clsd_fast.residual_block`.

    Args:
        channels: of input, output and the hidden map.
        res_scale: factor of the branch; a number, or a tensor of one element, which gets a gradient
            (the convolutions then run one by one).

    The parameters are ``body.0.{weight,bias}`` and ``body.2.{weight,bias}``, as in EDSR-PyTorch's
    ``ResBlock``.
    """

    def __init__(self, channels: int, res_scale: float | Tensor = 1.0) -> None:
        super().__init__()
        convs = (Conv3x3(channels, channels) for _ in range(2))
        self.body = nn.Sequential(next(convs), nn.ReLU(), next(convs))
        self.res_scale = res_scale

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        if is_recorded(x) or not self._is_fused():
            return x + self.res_scale * self.body(x)
        first, second = self._convs()
        return residual_block(
            x, first.weight, first.bias, second.weight, second.bias, self.res_scale
        )

    def _is_fused(self) -> bool:
        layers = (Conv3x3, nn.ReLU, Conv3x3)
        return (
            not isinstance(self.res_scale, Tensor)
            and is_untouched(self.body, nn.Sequential)
            and are_untouched(self.body, *layers)
        )

    def _convs(self) -> tuple[Conv3x3, Conv3x3]:
        first, _, second = cast("tuple[Conv3x3, nn.ReLU, Conv3x3]", self.body)
        return first, second


class ResidualBlocks(nn.Sequential):
    """``nn.Sequential`` that runs residual blocks in a row by :func:`clsd_fast.residual_blocks`.

    Args:
        *modules: any, of which each :class:`ResidualBlock` is a link of a chain while it and its
            children are as they were made. Others end the chain and are called.
    """

    def forward(self, x: Tensor, maps: dict[int, Tensor | None] | None = None) -> Tensor:
        """The result of all modules.

        Args:
            x: [N, C, H, W].
            maps: by numbers of modules, counted from 1, where their results are put.
        """
        x, found = self.run(x, list(maps or ()))
        if maps:
            maps.update(zip(maps, found, strict=True))
        return x

    def run(
        self, x: Tensor, taps: Sequence[int] = (), stop: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The result of the modules before ``stop``, and those after the modules of ``taps``.

        Args:
            x: [N, C, H, W].
            taps: numbers of modules, counted from 1.
            stop: end of a slice of the modules.

        Raises:
            ValueError: for a tap that is not one of them.
        """
        modules = list(self)[:stop]
        for tap in taps:
            if not 1 <= tap <= len(modules):
                raise ValueError(f"ResidualBlocks: expected taps in 1..{len(modules)}, got {tap}")
        maps: dict[int, Tensor] = {}
        number = 0
        chains = ([module] for module in modules) if is_recorded(x) else _chains(modules)
        for chain in chains:
            ends = [tap - number for tap in taps if number < tap <= number + len(chain)]
            if len(chain) > 1:
                x, found = _run_chain(cast("list[ResidualBlock]", chain), x, ends)
            else:
                x = chain[0](x)
                found = [x for _ in ends]
            maps.update(zip((number + end for end in ends), found, strict=True))
            number += len(chain)
        return x, [maps[tap] for tap in taps]


def _chains(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """The modules in their order: residual blocks that can be one operator, others alone."""
    chain: list[nn.Module] = []
    link = None
    for module in modules:
        before, link = link, _link(module)
        if chain and (link is None or link != before):
            yield chain
            chain = []
        chain.append(module)
    if chain:
        yield chain


def _link(module: nn.Module) -> tuple | None:
    """What the blocks of a chain have in common; None for what cannot be in one."""
    if not is_untouched(module, ResidualBlock):
        return None
    block = cast(ResidualBlock, module)
    if not block._is_fused() or any(conv.bias is None for conv in block._convs()):
        return None
    return block.res_scale, *(conv.weight.dtype for conv in block._convs())


def _run_chain(
    blocks: list[ResidualBlock], x: Tensor, taps: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    return residual_blocks(x, *_parameters_of_blocks(blocks), blocks[0].res_scale, taps=taps)


def _parameters_of_blocks(blocks: Iterable[nn.Module]) -> ChainParameters:
    first, second = zip(*(cast(ResidualBlock, block)._convs() for block in blocks), strict=True)
    weights1, biases1 = [conv.weight for conv in first], [conv.bias for conv in first]
    weights2, biases2 = [conv.weight for conv in second], [conv.bias for conv in second]
    return weights1, biases1, weights2, biases2


class PixelShuffleUpsampler(nn.Sequential):
    """Convolution and pixel shuffle on :func:`clsd_fast.pixel_shuffle_upsample`.

    Args:
        upscale_factor: 2, 3 or 4; 4 is two stages of 2.
        channels: of input and output.

    The parameters are ``0.{weight,bias}`` and, for 4, ``2.{weight,bias}``, as in EDSR-PyTorch's
    ``Upsampler``.

    Raises:
        ValueError: for another factor.
    """

    def __init__(self, upscale_factor: int, channels: int) -> None:
        if upscale_factor not in STAGES:
            raise ValueError(
                f"PixelShuffleUpsampler: expected upscale_factor in {FACTORS}, got {upscale_factor}"
            )
        layers: list[nn.Module] = []
        for stage in STAGES[upscale_factor]:
            layers += [Conv3x3(channels, channels * stage**2), nn.PixelShuffle(stage)]
        super().__init__(*layers)

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        if is_recorded(x) or not self._is_fused():
            return super().forward(x)
        for conv, factor in zip(_convs(self), self._stages(), strict=True):
            x = pixel_shuffle_upsample(x, conv.weight, conv.bias, factor)
        return x

    def _is_fused(self) -> bool:
        return are_untouched(self, *(Conv3x3, nn.PixelShuffle) * (len(self) // 2))

    def _stages(self) -> list[int]:
        return [
            shuffle.upscale_factor for shuffle in cast("list[nn.PixelShuffle]", list(self)[1::2])
        ]


def _convs(upsampler: nn.Sequential) -> list[Conv3x3]:
    """Those of the stages, in their order; a pixel shuffle follows each."""
    return cast("list[Conv3x3]", list(upsampler)[::2])


class UpsampleTail(nn.Sequential):
    """Upsampler and last convolution on :func:`clsd_fast.upsample_tail`.

    Args:
        upscale_factor: 2, 3 or 4.
        channels: of the input.
        out_channels: of the output.
        collapse: compose all convolutions into one. The other way, which gives the same up to
            rounding, makes the intermediate maps by the operators of the children. None composes
            where there is a kernel for that: on CPUs with the native library, on GPUs.

    The parameters are those of ``nn.Sequential(PixelShuffleUpsampler(...), Conv3x3(...))``, as in
    EDSR-PyTorch's ``tail``.

    Raises:
        ValueError: for another factor.
    """

    def __init__(
        self,
        upscale_factor: int,
        channels: int,
        out_channels: int = 3,
        *,
        collapse: bool | None = None,
    ) -> None:
        super().__init__(
            PixelShuffleUpsampler(upscale_factor, channels), Conv3x3(channels, out_channels)
        )
        self.upscale_factor = upscale_factor
        self.collapse = collapse

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, out_channels, upscale_factor * H, upscale_factor * W]."""
        if not self._is_composed(x):
            return super().forward(x)
        return upsample_tail(x, *self._parameters_of_all(), self.upscale_factor)

    def _is_composed(self, x: Tensor) -> bool:
        if is_recorded(x):
            return False
        collapse = has_kernel("upsample_tail", x) if self.collapse is None else self.collapse
        if not collapse or not are_untouched(self, PixelShuffleUpsampler, Conv3x3):
            return False
        upsampler = cast(PixelShuffleUpsampler, self[0])
        return upsampler._is_fused() and upsampler._stages() == list(STAGES[self.upscale_factor])

    def _parameters_of_all(self) -> TailParameters:
        upsampler, last = cast("tuple[PixelShuffleUpsampler, Conv3x3]", self)
        convs = _convs(upsampler)
        weights, biases = [conv.weight for conv in convs], [conv.bias for conv in convs]
        return weights, biases, last.weight, last.bias


def run_tails(tails: Sequence[nn.Module], xs: Sequence[Tensor], shift: nn.Module) -> list[Tensor]:
    """``[shift(tail(x)) for tail, x in zip(tails, xs)]``, those of one kind by one operator."""

    def kind(tail: UpsampleTail, x: Tensor) -> tuple | None:
        if not is_untouched(tail, UpsampleTail) or not tail._is_composed(x):
            return None
        return kind_of_tail(x, tail._parameters_of_all(), tail.upscale_factor)

    def run(tails: list[UpsampleTail], xs: list[Tensor]) -> list[Tensor]:
        parameters = [tail._parameters_of_all() for tail in tails]
        constants = _constant_shift(shift, parameters)
        images = upsample_tails(xs, parameters, tails[0].upscale_factor, constants)
        return images if constants is not None else [shift(image) for image in images]

    def alone(tail: nn.Module, x: Tensor) -> Tensor:
        return shift(tail(x))

    return _run_by_kind(zip(tails, xs, strict=True), kind, run, alone)


def _constant_shift(
    shift: nn.Module, tails: Sequence[TailParameters]
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a shift that tails of these parameters can be composed with, if it is."""
    if not is_untouched(shift, MeanShift):
        return None
    conv = cast(MeanShift, shift)
    weight, bias = conv.weight, conv.bias
    out_weight = tails[0][2]
    dtype = torch.float32 if out_weight.element_size() == 2 else out_weight.dtype
    fits = (
        bias is not None
        and _convolves_as(conv, MeanShift._AS_MADE)
        and weight.shape[:2] == out_weight.shape[:1] * 2
        and not (weight.requires_grad or bias.requires_grad)
        and all(t.dtype == dtype and t.device == out_weight.device for t in (weight, bias))
    )
    return (weight, cast(Tensor, bias)) if fits else None


def run_chains(chains: Sequence[nn.Module], xs: Sequence[Tensor]) -> list[Tensor]:
    """``[chain(x) for chain, x in zip(chains, xs)]``, those of one kind by one operator."""

    def kind(chain: ResidualBlocks, x: Tensor) -> tuple | None:
        links = {_link(block) for block in chain} if is_untouched(chain, ResidualBlocks) else {None}
        if len(links) != 1 or None in links:
            return None
        of_chain = kind_of_chain(x, _parameters_of_blocks(chain))
        return None if of_chain is None else (*links, of_chain)

    def run(chains: list[ResidualBlocks], xs: list[Tensor]) -> list[Tensor]:
        scale = cast(float, cast(ResidualBlock, chains[0][0]).res_scale)
        return residual_chains(xs, [_parameters_of_blocks(chain) for chain in chains], scale)

    return _run_by_kind(zip(chains, xs, strict=True), kind, run)


def run_convs(
    convs: Sequence[nn.Module], xs: Sequence[Tensor], residuals: Sequence[Tensor | None]
) -> list[Tensor]:
    """:func:`add_convolved` of each, those of one kind and the same residual by one operator."""

    def kind(conv: Conv3x3, x: Tensor, residual: Tensor | None) -> tuple | None:
        of_conv = is_untouched(conv, Conv3x3) and kind_of_convolution(x, (conv.weight, conv.bias))
        first = next(i for i, other in enumerate(residuals) if other is residual)
        return (first, *of_conv) if of_conv else None

    def run(convs: list[Conv3x3], xs: list[Tensor], residuals: list[Tensor | None]) -> list[Tensor]:
        return conv3x3s(xs, [(conv.weight, conv.bias) for conv in convs], residuals[0])

    def alone(conv: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        return add_convolved(residual, conv, x)

    return _run_by_kind(zip(convs, xs, residuals, strict=True), kind, run, alone)


def _run_by_kind(
    calls: Iterable[tuple],
    kind: Callable[..., tuple | None],
    run: Callable[..., list[Tensor]],
    alone: Callable[..., Tensor] = lambda module, x: module(x),
) -> list[Tensor]:
    """``[alone(*call) for call in calls]``, several of one kind by ``run`` of lists."""
    calls = list(calls)
    kinds = [kind(*call) for call in calls]
    results: dict[int, Tensor] = {}
    for index, of_call in enumerate(kinds):
        if index in results:
            continue
        others = (i for i, other in enumerate(kinds) if other == of_call and i not in results)
        alike = list(islice(others, TOGETHER))
        if of_call is None or len(alike) == 1:
            results[index] = alone(*calls[index])
        else:
            found = run(*map(list, zip(*(calls[i] for i in alike), strict=True)))
            results.update(zip(alike, found, strict=True))
    return [results[index] for index in range(len(kinds))]


class MeanShift(nn.Conv2d):
    """Adds ``sign * value_range * rgb_mean``; a frozen 1x1 convolution, as in EDSR-PyTorch.

    In the parameters' dtype, under autocast too: of the values that an image has, bfloat16 tells
    those above 128 apart by whole steps.
    """

    _AS_MADE = ((1, 1), (1, 1), (0, 0), (1, 1), 1, "zeros")

    def __init__(self, value_range: float, rgb_mean: tuple[float, float, float], sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            assert self.bias is not None
            self.bias.copy_(sign * value_range * torch.tensor(rgb_mean))
        self.requires_grad_(False)

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return super().forward(x.to(self.weight.dtype))
