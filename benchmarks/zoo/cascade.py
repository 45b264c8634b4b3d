"""Cascades of blocks."""

import torch
from torch import nn

from .blocks import ResidualBlock, Upsampler, conv
from .residual import MeanShift


class BasicBlock(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True))

    def forward(self, x):
        return self.body(x)


class Cascade(nn.Module):
    def __init__(self, channels, make):
        super().__init__()
        self.b1, self.b2, self.b3 = (make() for _ in range(3))
        self.c1 = BasicBlock(2 * channels, channels)
        self.c2 = BasicBlock(3 * channels, channels)
        self.c3 = BasicBlock(4 * channels, channels)

    def forward(self, x):
        c0 = o0 = x
        c1 = torch.cat([c0, self.b1(o0)], dim=1)
        o1 = self.c1(c1)
        c2 = torch.cat([c1, self.b2(o1)], dim=1)
        o2 = self.c2(c2)
        c3 = torch.cat([c2, self.b3(o2)], dim=1)
        return self.c3(c3)


class UpsampleBlock(nn.Module):
    def __init__(self, channels, scale):
        super().__init__()
        layers = []
        for stage in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [conv(channels, channels * stage**2), nn.ReLU(inplace=True)]
            layers += [nn.PixelShuffle(stage)]
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


class CARN(nn.Module):
    def __init__(self, scale=2, channels=16):
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.entry, self.exit = conv(3, channels), conv(channels, 3)
        self.cascade = Cascade(
            channels, lambda: Cascade(channels, lambda: ResidualBlock(channels, channels))
        )
        self.upsample = UpsampleBlock(channels, scale)

    def forward(self, x):
        x = self.entry(self.sub_mean(x))
        out = self.upsample(self.cascade(x))
        return self.add_mean(self.exit(out))


class LaplacianAttention(nn.Module):
    """Over channels, by dilated convolutions of their means."""

    def __init__(self, channels, reduction=4):
        super().__init__()
        few = channels // reduction
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.c1, self.c2, self.c3 = (
            nn.Sequential(conv(channels, few, padding=size, dilation=size), nn.ReLU(inplace=True))
            for size in (3, 5, 7)
        )
        self.c4 = nn.Sequential(conv(3 * few, channels), nn.Sigmoid())

    def forward(self, x):
        y = self.avg_pool(x)
        weights = torch.cat([self.c1(y), self.c2(y), self.c3(y)], dim=1)
        return x * self.c4(weights)


class DRLM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.r1, self.r2 = (
            ResidualBlock(channels, channels),
            ResidualBlock(2 * channels, 2 * channels),
        )
        self.g = BasicBlock(4 * channels, channels)
        self.ca = LaplacianAttention(channels)

    def forward(self, x):
        c1 = torch.cat([x, self.r1(x)], dim=1)
        c2 = torch.cat([c1, self.r2(c1)], dim=1)
        return self.ca(self.g(c2))


class DRLN(nn.Module):
    """As in super-image; fewer blocks."""

    def __init__(self, scale=2, channels=16, blocks=2):
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = conv(3, channels)
        self.blocks = blocks
        for number in range(1, blocks + 1):
            setattr(self, f"b{number}", DRLM(channels))
        self.upsample = Upsampler(scale, channels)
        self.tail = conv(channels, 3)

    def forward(self, x):
        x = self.head(self.sub_mean(x))
        out = x
        for number in range(1, self.blocks + 1):
            out = getattr(self, f"b{number}")(out)
        out = self.upsample(out + x)
        out = self.tail(out)
        return self.add_mean(out)
