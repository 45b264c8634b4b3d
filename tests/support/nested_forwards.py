"""Modules of which a forward calls layers on each other's results, or seems to."""

import torch
import torch.nn.functional as F
from torch import nn
from zoo.blocks import CRC, Upsampler, conv


class Tail(nn.Module):
    """As in BasicSR."""

    def __init__(self, scale=2):
        super().__init__()
        self.upsample, self.conv_last = Upsampler(scale), conv(16, 3)

    def forward(self, x):
        return self.conv_last(self.upsample(x))


class Layers(nn.Module):
    """Of which forwards below are made."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.up = conv(), conv(), conv(16, 64)
        self.body = nn.Sequential(CRC(), CRC())
        self.block, self.shuffle, self.relu = CRC(), nn.PixelShuffle(2), nn.ReLU(inplace=True)
        self.last, self.inner = conv(16, 3), nn.Module()
        self.inner.last = conv(16, 3)
        self.upsamples = True


class Activated(Layers):
    def forward(self, x):
        return self.second(self.relu(self.first(x)))


class ActivatedByFunctions(Layers):
    def forward(self, x):
        return F.relu(self.first(torch.relu(self.second(x))))


class ActivatedByLeaky(Layers):
    """As in RRDB: the layer for all of them."""

    def __init__(self):
        super().__init__()
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        y = self.lrelu(self.first(x))
        return self.last(self.lrelu(self.second(y)))


class InALoop(Layers):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), nn.PReLU(16), conv(), nn.ReLU(), conv(16, 3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.abs()


class InLoopsByIndex(InALoop):
    """As Real-ESRGAN's SRVGGNetCompact."""

    def forward(self, x):
        for i in range(0, len(self.layers)):
            x = self.layers[i](x)
        return x


class InLoopsByNumber(InALoop):
    def forward(self, x):
        out = x * 2
        for i in range(len(self.body)):
            out = self.body[i](out)
        for i in range(len(self.layers)):
            out = self.layers[i](out)
        return out


class Summed(Layers):
    """As in RFDB and RRDB."""

    def forward(self, x):
        y = self.first(x)
        y = self.relu(y + x)
        z = self.second(y)
        return z * 0.2 + x


class SummedInPlace(Layers):
    """As EDSR's body."""

    def forward(self, x):
        res = self.body(x)
        res = self.second(res)
        res += x
        x = self.last(res)
        return x


class SummedFirst(Layers):
    def forward(self, x):
        return F.relu(x + 0.5 * self.first(x))


class SummedLast(Layers):
    def forward(self, x):
        identity = x
        out = self.second(self.relu(self.first(x))) * 0.3
        return identity + out


class OfAnotherShape(Layers):
    """Which the operator has no sum for."""

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        return self.first(x) + mean


class Shuffled(Layers):
    def forward(self, x):
        x = x.relu()
        return self.relu(self.shuffle(self.up(x)))


class BlocksInARow(Layers):
    def forward(self, x):
        return self.block(self.body(x))


class Deeper(Layers):
    def forward(self, x):
        out = self.inner.last(self.shuffle(self.up(x + 1)))
        return torch.sigmoid(out)


class UsedTwice(Layers):
    def forward(self, x):
        up = self.shuffle(self.up(x))
        return self.last(up) + up.mean()


class WithTwoWays(Layers):
    def forward(self, x):
        if not self.upsamples:
            return self.relu(self.first(x))
        return self.last(self.shuffle(self.up(x)))


class Base(Layers):
    def forward(self, x, gain=2.0, *, shift=1):
        return gain * self.relu(self.first(x)) + shift


class Derived(Base):
    def forward(self, x, gain=3.0, *, shift=2):
        x = super().forward(x, gain)
        return shift + self.last(self.shuffle(self.up(x)))


class WithPrivateNames(Layers):
    """Which Python knows by other words."""

    def __init__(self):
        super().__init__()
        self.__up = Upsampler(3)

    def forward(self, x):
        return self.last(self.__up(self.relu(self.first(x))))


class Assigning(Layers):
    """To itself, as BasicSR's EDSR does."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.relu(self.first(x))


FORWARDS = [
    (Tail, ["upsample_tail"]),
    (lambda: Tail(3), ["upsample_tail"]),
    (lambda: Tail(4), ["upsample_tail"]),
    (Activated, ["conv3x3", "conv3x3"]),
    (ActivatedByFunctions, ["conv3x3", "conv3x3"]),
    (ActivatedByLeaky, ["conv3x3", "conv3x3", "conv3x3"]),
    (InALoop, ["conv3x3", "conv3x3", "conv3x3"]),
    (InLoopsByIndex, ["conv3x3", "conv3x3", "conv3x3"]),
    (InLoopsByNumber, ["residual_blocks", "conv3x3", "conv3x3", "conv3x3"]),
    (Summed, ["conv3x3", "conv3x3"]),
    (SummedInPlace, ["residual_blocks", "conv3x3", "conv3x3"]),
    (SummedFirst, ["conv3x3"]),
    (SummedLast, ["conv3x3", "conv3x3"]),
    (OfAnotherShape, ["conv3x3"]),
    (Shuffled, ["pixel_shuffle_upsample"]),
    (BlocksInARow, ["residual_blocks"]),
    (Deeper, ["upsample_tail"]),
    (UsedTwice, ["pixel_shuffle_upsample", "conv3x3"]),
    (WithTwoWays, ["upsample_tail"]),
    (Base, ["conv3x3"]),
    (Derived, ["conv3x3", "upsample_tail"]),
    (WithPrivateNames, ["conv3x3", "upsample_tail"]),
    (Assigning, ["conv3x3"]),
]


class Statements(Layers):
    """Whose results are read once more, or later, each of them."""

    def forward(self, x):
        y = self.first(x)
        z = self.relu(y)
        z = z - y
        y = self.first(z)
        if self.upsamples:
            y = self.relu(y)
        y = self.first(y)
        y = self.relu(y + y)
        y = w = self.second(y)
        y = self.relu(y)
        z, x = y * 1, w
        y = self.first(z)
        y += y
        y = self.first(x)
        z += x
        y[:] = self.relu(y)
        return self.relu(input=y)


class Guarded(Layers):
    """By what comes when the second line fails."""

    def forward(self, x):
        y = x
        try:
            y = self.first(x)
            y = self.inner(y)
        except RuntimeError:
            y = self.second(y)
        return y


class Captured(Layers):
    def forward(self, x):
        y = self.first(x)

        def scaled(y):
            y = self.relu(y)
            return y * 2

        y = scaled(y)
        return y


class Within(Layers):
    """An expression, a variable is assigned that it adds up."""

    def forward(self, x):
        y = x * 0
        return self.first(y := x) + y


class Failing(nn.Identity):
    def forward(self, x):
        raise RuntimeError


class Loops(Layers):
    """That are something else, each of them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), nn.ReLU()])
        self.others = nn.ModuleList([conv(), nn.ReLU()])

    def forward(self, x):
        for kept in self.layers:
            x = kept(x)
        x = x + kept(x)
        for first in self.layers:
            x = first(x)
            x = x + 1
        for second in self.layers:
            y = second(x)
        for third in self.layers:
            x = third(x)
        else:
            x = x * 2
        for fourth in self.layers[:1]:
            x = fourth(x)
        for i in range(1, len(self.layers)):
            x = self.layers[i](x)
        for j in range(len(self.layers)):
            x = self.layers[j - 1](x)
        for k in range(len(self.layers)):
            x = self.others[k](x)
        return x, y
