"""Convolutions."""

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .._children import calls_its_class
from ..nn import Conv3x3
from ..ops import conv3x3
from .classes import Accelerated, is_accelerated, serves

NARROW = 4
#: Fewest channels of maps that are not narrow: those between are convolved directly, which is
#: slower than PyTorch's (docs/cpu.md).
WIDE = 16


class AcceleratedConv(Accelerated):
    """An ``nn.Conv2d`` on :func:`clsd_fast.conv3x3` while its options are those of one."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if serves("conv3x3", input) and _is_as_made(self):
            return conv3x3(input, self.weight, self.bias)
        return super().forward(input)


def is_conv(module: nn.Module) -> bool:
    """Whether a call of the module is ``conv3x3`` with its parameters and nothing else."""
    is_ours = is_accelerated(module, AcceleratedConv)
    return is_ours and calls_its_class(module) and _is_as_made(module)


def _is_as_made(conv: nn.Module) -> bool:
    return _wrong_option(conv) is None and "_conv_forward" not in conv.__dict__


def why_not_conv(conv: nn.Conv2d) -> str | None:
    """Why the operator cannot stand for a convolution, or would be slower; None if neither."""
    if isinstance(conv, Conv3x3):
        return "runs on clsd_fast.conv3x3 already"
    if is_parametrized(conv):
        return "parametrised"
    if "weight" not in conv._parameters:
        return "its weight is made before each call (weight_norm, spectral_norm, pruning)"
    kind = type(conv)
    if (kind.forward, kind._conv_forward) != (nn.Conv2d.forward, nn.Conv2d._conv_forward):
        return "its class has a forward of its own"
    if "_conv_forward" in conv.__dict__ or "forward" in conv.__dict__:
        return "its forward was replaced"
    if not calls_its_class(conv):
        return "hooked"
    return _wrong_option(conv) or _slow_shape(conv)


def _wrong_option(conv: nn.Module) -> str | None:
    """Which option is not that of a 3x3 convolution with stride 1 and zero padding 1."""
    if conv.kernel_size != (3, 3):
        return f"kernel {conv.kernel_size}"
    if conv.stride != (1, 1):
        return f"stride {conv.stride}"
    if conv.dilation != (1, 1):
        return f"dilation {conv.dilation}"
    if conv.groups != 1:
        return f"{conv.groups} groups"
    if conv.padding not in ((1, 1), "same"):
        return f"padding {conv.padding}"
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode}"
    return None


def _slow_shape(conv: nn.Conv2d) -> str | None:
    channels = (conv.in_channels, conv.out_channels)
    if max(channels) < WIDE or any(NARROW < number < WIDE for number in channels):
        return f"{channels[0]} to {channels[1]} channels: PyTorch is faster"
    return None
