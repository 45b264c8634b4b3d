"""What is replaced by what."""

import pytest
import torch
from support.accelerated import accelerated, assert_same, images, operators
from torch import nn
from zoo.blocks import (
    CRC,
    ConvReLU,
    Functional,
    ResBlock,
    ResidualBlock,
    ResidualBlockNoBN,
    Upsampler,
    conv,
)

from clsd_fast import accelerate, restore

BLOCKS = [ResBlock, ResidualBlockNoBN, CRC, Functional, ResidualBlock, ConvReLU]


@pytest.mark.parametrize("make", BLOCKS)
def test_blocks_compute_what_they_did(backend, make):
    plain, ours = accelerated(make())
    assert_same(ours, plain, images())


@pytest.mark.parametrize(
    "make, expected",
    [
        (ResBlock, ["residual_block"]),
        (ResidualBlockNoBN, ["residual_block"]),
        (CRC, ["residual_block"]),
        (Functional, ["residual_block"]),
        (ResidualBlock, ["conv3x3", "conv3x3"]),
        (ConvReLU, ["conv3x3"]),
    ],
)
def test_operators_of_blocks(calls, make, expected):
    block = accelerate(make(), verify=False)
    block(images().float())
    assert calls == expected
    assert operators(block) == expected[:1]


class TwoSlopes(ResidualBlockNoBN):
    """Of its own in either place."""

    def __init__(self, num_feat=16):
        super().__init__(num_feat, 0.3)
        self.relu, self.last = nn.PReLU(num_feat), nn.PReLU()

    def forward(self, x):
        return self.last(super().forward(x))


class OneSlope(ResidualBlock):
    """In both places."""

    def __init__(self):
        super().__init__()
        self.body[1] = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        return self.body[1](x + self.body(x))


def with_activation(activation):
    module = ConvReLU()
    module.relu = activation
    return module


ACTIVATIONS = [
    lambda: nn.LeakyReLU(0.2, inplace=True),
    lambda: nn.LeakyReLU(-0.5),
    lambda: nn.PReLU(16),
    nn.PReLU,
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda act: nn.Sequential(conv(), act, conv()), ["conv3x3", "conv3x3"]),
        (with_activation, ["conv3x3"]),
        (lambda act: ResBlock(activation=act, res_scale=0.1), ["conv3x3", "conv3x3"]),
    ],
    ids=["sequence", "module", "block"],
)
def test_other_activations_are_the_convolutions_too(calls, monkeypatch, activation, make, expected):
    layer = activation()
    plain, ours = accelerated(make(layer))
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == expected
    monkeypatch.setattr(type(layer), "forward", None)
    ours(images())


@pytest.mark.parametrize("make", [TwoSlopes, OneSlope])
def test_activations_before_and_after_the_sum(calls, make):
    plain, ours = accelerated(make())
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == ["conv3x3", "conv3x3"]
    assert [row.layer for row in accelerate.report(ours).rows] == [make.__name__]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: nn.Sequential(conv(), nn.PReLU(16)), "1"),
        (lambda: with_activation(nn.PReLU(16)), "relu"),
    ],
)
def test_slopes_that_do_not_fit_are_refused_by_pytorch(native, make, name):
    model = accelerate(make())
    model.get_submodule(name).weight = nn.Parameter(torch.ones(8))
    with pytest.raises(RuntimeError, match="Mismatch of parameter numbers"):
        model(images().float())


@pytest.mark.parametrize("make", [ResBlock, ResidualBlockNoBN])
@pytest.mark.parametrize("scale", [1, 0.1])
def test_the_scale_is_the_attribute(calls, make, scale):
    plain, ours = accelerated(make(res_scale=scale))
    calls.clear()
    for value in (scale, 0.7):
        plain.res_scale = ours.res_scale = value
        assert_same(ours, plain, images())
    assert set(calls) == {"residual_block"}


class WithAnotherNumber(CRC):
    """Which is that of its scale by chance."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.1

    def forward(self, x):
        return x + 0.1 * self.res(x)


def test_a_number_that_is_not_the_scale(calls):
    plain, ours = accelerated(WithAnotherNumber())
    plain.momentum = ours.momentum = 0.7
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == ["residual_block"]


class Named(nn.Module):
    """By words that the implementation has uses for, too."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(conv(), nn.ReLU(), conv())
        self.scale = self.kind = 0.3
        self.original = self.plan = "mine"

    def run(self, x):
        return self.convs(x)

    def layers(self):
        return self.run

    def forward(self, x):
        return x + self.layers()(x) * self.scale


def test_a_module_s_own_names_are_its_own(calls):
    plain, ours = accelerated(nn.Sequential(Named(), Named()))
    calls.clear()
    assert_same(ours, plain, images())
    assert_same(ours[0], plain[0], images())
    assert calls == ["residual_blocks", "residual_block"]
    assert ours[0].layers() == ours[0].run and ours[0].plan == "mine"


@pytest.mark.parametrize("channels", [17, 20, 36, 62])
def test_channels_need_be_no_multiple_of_8(calls, channels):
    """From 16 on, they are not the slower ones (docs/cpu.md)."""
    plain, ours = accelerated(nn.Sequential(conv(channels), nn.ReLU()))
    calls.clear()
    assert_same(ours, plain, images(channels))
    assert calls == ["conv3x3"]


ACTIVATED = nn.ReLU()
SEQUENCES = {
    "a chain of three and another": (
        lambda: nn.Sequential(*(ResBlock(res_scale=s) for s in (0.1, 0.1, 0.1, 0.2)), conv()),
        ["residual_blocks", "residual_block", "conv3x3"],
    ),
    "a chain without biases": (
        lambda: nn.Sequential(*(ResBlock(bias=False) for _ in range(2))),
        ["residual_blocks"],
    ),
    "no chain of blocks with and without": (
        lambda: nn.Sequential(ResBlock(), ResBlock(bias=False)),
        ["residual_block", "residual_block"],
    ),
    "no chain that ends in a ReLU": (
        lambda: nn.Sequential(ResidualBlock(), ResidualBlock()),
        ["conv3x3"] * 4,
    ),
    "sequences in a sequence": (
        lambda: nn.Sequential(nn.Sequential(CRC(), CRC()), nn.Sequential(CRC())),
        ["residual_blocks"],
    ),
    "convolutions that share a ReLU": (
        lambda: nn.Sequential(conv(), ACTIVATED, conv(), ACTIVATED, conv()),
        ["conv3x3"] * 3,
    ),
    "tail x2": (lambda: nn.Sequential(Upsampler(2), conv(16, 3)), ["upsample_tail"]),
    "tail x3": (lambda: nn.Sequential(Upsampler(3), conv(16, 3)), ["upsample_tail"]),
    "tail x4": (lambda: nn.Sequential(Upsampler(4), conv(16, 1)), ["upsample_tail"]),
    "flat tail": (lambda: nn.Sequential(*Upsampler(4), conv(16, 3)), ["upsample_tail"]),
    "no tail of many channels": (
        lambda: nn.Sequential(Upsampler(2), conv()),
        ["pixel_shuffle_upsample", "conv3x3"],
    ),
    "no tail of other factors": (
        lambda: nn.Sequential(Upsampler(2), Upsampler(3), conv(16, 3)),
        ["pixel_shuffle_upsample", "upsample_tail"],
    ),
    "upsampler": (lambda: Upsampler(4), ["pixel_shuffle_upsample"] * 2),
    "pixel shuffle at the end": (
        lambda: nn.Sequential(conv(16, 32), nn.ReLU(), conv(32, 48), nn.PixelShuffle(4)),
        ["conv3x3", "pixel_shuffle_upsample"],
    ),
    "batch normalisation between": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(16), nn.ReLU(), *Upsampler(2)),
        ["conv3x3", "pixel_shuffle_upsample"],
    ),
    "layers that are none of ours": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), conv(), nn.GELU(), nn.Conv2d(16, 16, 5)),
        ["conv3x3"],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(calls, name):
    make, expected = SEQUENCES[name]
    plain, ours = accelerated(make())
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == expected


def test_a_report(native):
    blocks = (ResBlock(32) for _ in range(3))
    body = nn.Sequential(*blocks, nn.GELU(), conv(32), conv(32, 64))
    tail = nn.Sequential(Upsampler(2, 64), conv(64, 3))
    model = accelerate(nn.Sequential(conv(3, 32), body, tail))
    lines = str(accelerate.report(model)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "5 replaced",
        "module layer runs on times as fast (CPU, training)",
        "0 and 2 more Conv2d conv3x3",
        "1.0 3 ResBlock residual_blocks 1.6 to 3.4",
        "1.3 GELU left alone: no kernel for this activation",
        "2.0.0 Conv2d + PixelShuffle + Conv2d upsample_tail 9 to 13",
    ]
    restored = {row.reason for row in accelerate.report(restore(model)).rows}
    assert restored == {
        "no kernel for this activation",
        "accelerate was not called since it is as it is",
    }


@pytest.mark.parametrize(
    "channels, gain",
    [
        ((3, 64), "1.1 to 1.6"),
        ((64, 3), "1.3 to 2.1"),
        ((64, 64), "2.0 to 3.0"),
        ((36, 128), "2.0 to 3.0"),
        ((3, 32), None),
        ((32, 64), None),
    ],
)
def test_gains_are_told_where_they_were_measured(native, channels, gain):
    (row,) = accelerate.report(accelerate(conv(*channels))).rows
    assert row.gain == gain
