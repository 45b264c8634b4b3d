"""Networks of dense blocks."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import conv


class RDBConv(nn.Module):
    def __init__(self, in_channels, growth):
        super().__init__()
        self.conv = nn.Sequential(conv(in_channels, growth), nn.ReLU())

    def forward(self, x):
        return torch.cat((x, self.conv(x)), 1)


class RDB(nn.Module):
    def __init__(self, channels, layers=3):
        super().__init__()
        dense = [RDBConv(channels * (1 + index), channels) for index in range(layers)]
        self.convs = nn.Sequential(*dense)
        self.LFF = nn.Conv2d(channels * (1 + layers), channels, 1)

    def forward(self, x):
        return self.LFF(self.convs(x)) + x


class RDN(nn.Module):
    """As in EDSR-PyTorch."""

    def __init__(self, scale=2, channels=16, blocks=2):
        super().__init__()
        self.SFENet1, self.SFENet2 = conv(3, channels), conv(channels)
        self.RDBs = nn.ModuleList(RDB(channels) for _ in range(blocks))
        self.GFF = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), conv(channels))
        layers = []
        for stage in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [conv(channels, channels * stage**2), nn.PixelShuffle(stage)]
        self.UPNet = nn.Sequential(*layers, conv(channels, 3))

    def forward(self, x):
        shallow = self.SFENet1(x)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        x = self.GFF(torch.cat(outputs, 1))
        x += shallow
        return self.UPNet(x)


class ResidualDenseBlock(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.conv1 = conv(channels, growth)
        self.conv2 = conv(channels + growth, growth)
        self.conv3 = conv(channels + 2 * growth, growth)
        self.conv4 = conv(channels + 3 * growth, growth)
        self.conv5 = conv(channels + 4 * growth, channels)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x):
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (ResidualDenseBlock(channels, growth) for _ in range(3))

    def forward(self, x):
        out = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * 0.2 + x


class RRDBNet(nn.Module):
    """As in ESRGAN and BasicSR; images are enlarged by their nearest pixels."""

    def __init__(self, scale=2, channels=16, blocks=1, growth=16):
        super().__init__()
        self.scale = scale
        self.conv_first = conv(3, channels)
        self.body = nn.Sequential(*(RRDB(channels, growth) for _ in range(blocks)))
        self.conv_body = conv(channels)
        self.conv_up1 = conv(channels)
        if scale == 4:
            self.conv_up2 = conv(channels)
        self.conv_hr, self.conv_last = conv(channels), conv(channels, 3)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x):
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        first = 2 if self.scale == 4 else self.scale
        feat = self.lrelu(self.conv_up1(F.interpolate(feat, scale_factor=first, mode="nearest")))
        if self.scale == 4:
            feat = self.lrelu(self.conv_up2(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))
