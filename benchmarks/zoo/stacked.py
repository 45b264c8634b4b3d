"""Networks of convolutions one after another."""

import torch.nn.functional as F
from torch import nn

from .blocks import ConvReLU, conv


class VDSR(nn.Module):
    def __init__(self, scale=2, channels=16, layers=3):
        super().__init__()
        self.scale = scale
        self.input, self.output = conv(3, channels, bias=False), conv(channels, 3, bias=False)
        self.residual_layer = nn.Sequential(*(ConvReLU(channels) for _ in range(layers)))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        out = self.relu(self.input(x))
        out = self.residual_layer(out)
        return self.output(out) + x


class Compact(nn.Module):
    """As Real-ESRGAN's SRVGGNetCompact."""

    def __init__(self, scale=2, channels=16, layers=3):
        super().__init__()
        self.upscale = scale
        self.body = nn.ModuleList([conv(3, channels), nn.PReLU(channels)])
        for _ in range(layers):
            self.body += [conv(channels), nn.PReLU(channels)]
        self.body.append(conv(channels, 3 * scale**2))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x):
        out = x
        for i in range(0, len(self.body)):
            out = self.body[i](out)
        out = self.upsampler(out)
        base = F.interpolate(x, scale_factor=self.upscale, mode="nearest")
        out += base
        return out


class ArtCNN(nn.Module):
    """A long skip over layers that are padded by a word."""

    def __init__(self, scale=2, channels=16, layers=3):
        super().__init__()
        self.conv0 = conv(3, channels, padding="same")
        body = []
        for _ in range(layers):
            body += [conv(channels, padding="same"), nn.ReLU()]
        self.body = nn.Sequential(*body, conv(channels, padding="same"))
        out = conv(channels, 3 * scale**2, padding="same")
        self.upsample = nn.Sequential(out, nn.PixelShuffle(scale))

    def forward(self, x):
        x = self.conv0(x)
        return self.upsample(self.body(x) + x)


class Attention(nn.Module):
    """As in NinaSR: of each pixel, by what is around it."""

    def __init__(self, channels, mid_channels=8):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(channels, mid_channels, 1),
            nn.ReLU(True),
            nn.Conv2d(mid_channels, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.body(self.pool(x))


class AttentionBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, 2 * channels, bias=False),
            nn.ReLU(True),
            Attention(2 * channels),
            conv(2 * channels, channels, bias=False),
        )

    def forward(self, x):
        res = self.body(x).mul(0.7)
        res += x
        return res


class NinaSR(nn.Module):
    """As in torchSR."""

    def __init__(self, scale=2, channels=16, blocks=2):
        super().__init__()
        self.head = nn.Sequential(conv(3, channels))
        body = [AttentionBlock(channels) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv(channels, bias=False))
        self.tail = nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x):
        x = self.head(x)
        res = self.body(x)
        res += x
        return self.tail(res)
