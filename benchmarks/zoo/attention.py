"""Networks with attention over channels."""

from torch import nn

from .blocks import Upsampler, conv
from .residual import EDSR, MeanShift


class CALayer(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv_du(y)
        return x * y


class Residual(nn.Module):
    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        res = self.body(x)
        res += x
        return res


class RCAB(Residual):
    def __init__(self, channels):
        super().__init__(conv(channels), nn.ReLU(True), conv(channels), CALayer(channels))


class ResidualGroup(Residual):
    def __init__(self, channels, blocks):
        super().__init__(*(RCAB(channels) for _ in range(blocks)), conv(channels))


class RCAN(nn.Module):
    """As in RCAN's own code and EDSR-PyTorch."""

    def __init__(self, scale=2, channels=16, groups=2, blocks=2):
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(conv(3, channels))
        body = [ResidualGroup(channels, blocks) for _ in range(groups)]
        self.body = nn.Sequential(*body, conv(channels))
        self.tail = nn.Sequential(Upsampler(scale, channels), conv(channels, 3))

    forward = EDSR.forward
