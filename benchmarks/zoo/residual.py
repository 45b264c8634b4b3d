"""Networks of residual blocks."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import CRC, ResBlock, ResidualBlockNoBN, Upsampler, conv

RGB_MEAN = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Conv2d):
    def __init__(self, sign):
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * torch.tensor(RGB_MEAN)
        self.requires_grad_(False)


class EDSR(nn.Module):
    """As in EDSR-PyTorch, torchSR and super-image."""

    def __init__(self, scale=2, channels=16, blocks=2, res_scale=0.1):
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        body = [ResBlock(channels, res_scale) for _ in range(blocks)]
        self.head = nn.Sequential(conv(3, channels))
        self.body = nn.Sequential(*body, conv(channels))
        self.tail = nn.Sequential(Upsampler(scale, channels), conv(channels, 3))

    def forward(self, x):
        x = self.sub_mean(x)
        x = self.head(x)
        res = self.body(x)
        res += x
        x = self.tail(res)
        return self.add_mean(x)


class BasicSREDSR(nn.Module):
    def __init__(self, scale=2, channels=16, blocks=2, res_scale=1):
        super().__init__()
        self.img_range = 255.0
        self.mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
        self.conv_first = conv(3, channels)
        body = [ResidualBlockNoBN(channels, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body)
        self.conv_after_body = conv(channels)
        self.upsample = Upsampler(scale, channels)
        self.conv_last = conv(channels, 3)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        x = (x - self.mean) * self.img_range
        x = self.conv_first(x)
        res = self.conv_after_body(self.body(x))
        res += x
        x = self.conv_last(self.upsample(res))
        return x / self.img_range + self.mean


class MSRResNet(nn.Module):
    """As in BasicSR."""

    def __init__(self, scale=2, channels=16, blocks=2):
        super().__init__()
        self.scale = scale
        self.conv_first = conv(3, channels)
        self.body = nn.Sequential(*(ResidualBlockNoBN(channels) for _ in range(blocks)))
        stage = 2 if scale == 4 else scale
        self.upconv1 = conv(channels, channels * stage**2)
        if scale == 4:
            self.upconv2 = conv(channels, channels * 4)
        self.pixel_shuffle = nn.PixelShuffle(stage)
        self.conv_hr, self.conv_last = conv(channels), conv(channels, 3)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x):
        feat = self.lrelu(self.conv_first(x))
        out = self.body(feat)
        out = self.lrelu(self.pixel_shuffle(self.upconv1(out)))
        if self.scale == 4:
            out = self.lrelu(self.pixel_shuffle(self.upconv2(out)))
        out = self.conv_last(self.lrelu(self.conv_hr(out)))
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        out += base
        return out


class ShortcutBlock(nn.Module):
    def __init__(self, submodule):
        super().__init__()
        self.sub = submodule

    def forward(self, x):
        return x + self.sub(x)


class KAIREDSR(nn.Module):
    """As in KAIR: sequences in sequences are one."""

    def __init__(self, scale=2, channels=16, blocks=2):
        super().__init__()
        body = nn.Sequential(*(CRC(channels) for _ in range(blocks)), conv(channels))
        self.model = nn.Sequential(
            conv(3, channels),
            ShortcutBlock(body),
            *Upsampler(scale, channels),
            conv(channels, 3),
        )

    def forward(self, x):
        return self.model(x)
