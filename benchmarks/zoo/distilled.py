"""Networks whose blocks keep a part of the channels at each layer."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import conv


class ESA(nn.Module):
    """Attention over pixels, by what a smaller image has there; pooled by fewer than in theirs."""

    def __init__(self, channels, reduction=4):
        super().__init__()
        few = channels // reduction
        self.conv1, self.conv_f = nn.Conv2d(channels, few, 1), nn.Conv2d(few, few, 1)
        self.conv_max, self.conv3, self.conv3_ = (conv(few) for _ in range(3))
        self.conv2 = conv(few, stride=2, padding=0)
        self.conv4 = nn.Conv2d(few, channels, 1)
        self.sigmoid, self.relu = nn.Sigmoid(), nn.ReLU(inplace=True)

    def forward(self, x):
        c1_ = self.conv1(x)
        c1 = self.conv2(c1_)
        v_max = F.max_pool2d(c1, kernel_size=3, stride=3)
        v_range = self.relu(self.conv_max(v_max))
        c3 = self.relu(self.conv3(v_range))
        c3 = self.conv3_(c3)
        c3 = F.interpolate(c3, x.shape[2:], mode="bilinear", align_corners=False)
        c4 = self.conv4(c3 + self.conv_f(c1_))
        return x * self.sigmoid(c4)


class RFDB(nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.c1_d, self.c2_d, self.c3_d = (nn.Conv2d(channels, half, 1) for _ in range(3))
        self.c1_r, self.c2_r, self.c3_r = (conv(channels) for _ in range(3))
        self.c4 = conv(channels, half)
        self.act = nn.LeakyReLU(0.05, inplace=True)
        self.c5 = nn.Conv2d(4 * half, channels, 1)
        self.esa = ESA(channels)

    def forward(self, x):
        distilled_c1 = self.act(self.c1_d(x))
        r_c1 = self.c1_r(x)
        r_c1 = self.act(r_c1 + x)
        distilled_c2 = self.act(self.c2_d(r_c1))
        r_c2 = self.c2_r(r_c1)
        r_c2 = self.act(r_c2 + r_c1)
        distilled_c3 = self.act(self.c3_d(r_c2))
        r_c3 = self.c3_r(r_c2)
        r_c3 = self.act(r_c3 + r_c2)
        r_c4 = self.act(self.c4(r_c3))
        out = torch.cat([distilled_c1, distilled_c2, distilled_c3, r_c4], dim=1)
        return self.esa(self.c5(out))


class RFDN(nn.Module):
    def __init__(self, scale=2, channels=32):
        super().__init__()
        self.fea_conv = conv(3, channels)
        self.B1, self.B2 = (RFDB(channels) for _ in range(2))
        self.c = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.LeakyReLU(0.05, True))
        self.LR_conv = conv(channels)
        self.upsampler = nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x):
        shallow = self.fea_conv(x)
        first = self.B1(shallow)
        second = self.B2(first)
        fused = self.c(torch.cat([first, second], dim=1))
        return self.upsampler(self.LR_conv(fused) + shallow)
