"""Blocks as they are written in other people's networks."""

import torch.nn.functional as F
from torch import nn


def conv(channels=16, outputs=None, **options):
    return nn.Conv2d(channels, outputs or channels, 3, **{"padding": 1, **options})


class ResBlock(nn.Module):
    """As in EDSR-PyTorch, torchSR and super-image."""

    def __init__(self, channels=16, res_scale=1, activation=None, bias=True):
        super().__init__()
        first, second = (conv(channels, bias=bias) for _ in range(2))
        self.body = nn.Sequential(first, activation or nn.ReLU(True), second)
        self.res_scale = res_scale

    def forward(self, x):
        res = self.body(x).mul(self.res_scale)
        res += x
        return res


class ResidualBlockNoBN(nn.Module):
    """As in BasicSR."""

    def __init__(self, num_feat=16, res_scale=1):
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2 = conv(num_feat), conv(num_feat)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        out = self.conv2(self.relu(self.conv1(x)))
        return identity + out * self.res_scale


class CRC(nn.Module):
    """As in KAIR."""

    def __init__(self, channels=16):
        super().__init__()
        self.res = nn.Sequential(conv(channels), nn.ReLU(inplace=True), conv(channels))

    def forward(self, x):
        return x + self.res(x)


class Functional(nn.Module):
    """With numbers and functions in its forward alone, other channels between, and no biases."""

    def __init__(self, channels=16):
        super().__init__()
        self.expand, self.reduce = conv(channels, 24, bias=False), conv(24, channels, bias=False)

    def forward(self, x):
        return 0.1 * self.reduce(F.relu(self.expand(x))) + x


class ResidualBlock(nn.Module):
    """As in CARN and DRLN."""

    def __init__(self, in_channels=16, out_channels=16):
        super().__init__()
        first, second = conv(in_channels, out_channels), conv(out_channels)
        self.body = nn.Sequential(first, nn.ReLU(inplace=True), second)

    def forward(self, x):
        out = self.body(x)
        return F.relu(out + x)


class ConvReLU(nn.Module):
    """As in VDSR, padded as in ArtCNN, without a bias as in NinaSR."""

    def __init__(self, channels=16):
        super().__init__()
        self.conv = conv(channels, padding="same", bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


class Upsampler(nn.Sequential):
    """As in EDSR-PyTorch; BasicSR's Upsample is the same."""

    def __init__(self, scale, channels=16):
        layers = []
        for stage in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [conv(channels, channels * stage**2), nn.PixelShuffle(stage)]
        super().__init__(*layers)
