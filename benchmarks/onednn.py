"""The plain modules on oneDNN's convolutions with ReLU and addition fused: a baseline.

That is what torch.compile makes of frozen weights. There is no gradient.
"""

import plain
import torch
from torch import Tensor, nn


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    supported = {
        torch.float32: lambda: True,
        torch.bfloat16: ops._is_mkldnn_bf16_supported,
        torch.float16: ops._is_mkldnn_fp16_supported,
    }
    return supported[dtype]()


class OneDnnConv(nn.Module):
    """A convolution by oneDNN with what follows it fused; its weight is packed at the first call.

    Args:
        conv: whose weights it has.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        if self.packed is None:  # oneDNN chooses the packing by the size of the image
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.conv.weight.detach(), *self.geometry, x.shape
            )
        convolution = torch.ops.mkldnn._convolution_pointwise
        weights = (self.packed, self.conv.bias, *self.geometry)
        if residual is not None:
            return convolution.binary(x, residual, *weights, "add", 1.0, None, [], None)
        return convolution(x, *weights, "relu" if relu else "none", [], "")


class OneDnnResidualBlock(nn.Module):
    def __init__(self, block: plain.ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = OneDnnConv(block.body[0]), OneDnnConv(block.body[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x, relu=True), residual=x)


def fused(module: nn.Module) -> nn.Module:
    """A plain module on oneDNN's fused convolutions; changed in place, or replaced."""
    if isinstance(module, plain.ResidualBlock):
        return OneDnnResidualBlock(module)
    if isinstance(module, nn.Conv2d):
        return OneDnnConv(module)
    for name, child in module.named_children():
        setattr(module, name, fused(child))
    return module
