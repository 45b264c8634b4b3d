"""Students as people have them under CLSD, and their features written out."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO

import clsd_fast

from .plain_edsr import plain_losses_of_features, upsampled
from .util import rand


class ToUnit(nn.Module):
    """From images in 0..255 around the mean to 0..1, as BasicSR's EDSR ends."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255 + 0.5


def unit_head(channels: int, scale: int) -> nn.Module:
    return nn.Sequential(*clsd_fast.nn.UpsampleTail(scale, channels), ToUnit())


#: Options of the networks, and those of CLSD with them.
STUDENTS: dict[str, tuple[dict, dict]] = {
    "RCAN": (
        {"blocks": 1},
        {"taps": ("body.0", "body.1"), "deep": "tail", "shallow": "body"},
    ),
    "MSRResNet": (
        {"blocks": 3},
        {
            "taps": ("body.0", "body.1"),
            "deep": "upconv1",
            "shallow": "body",
            "base": "bilinear",
        },
    ),
    "Compact": (
        {},
        {"taps": ("body.3", "body.5"), "deep": "body.8", "base": "nearest"},
    ),
    "BasicSREDSR": (
        {"blocks": 3},
        {
            "taps": ("body.0", "body.2"),
            "deep": "upsample",
            "shallow": "body",
            "head": unit_head,
        },
    ),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ZOO[name](**STUDENTS[name][0])


def make(name: str, contrast: str = "info_nce", seed: int = 0, **options: Any) -> clsd_fast.CLSD:
    student = network(name)
    torch.manual_seed(seed)
    of_student = {"scale": 2, "head_blocks": 2, **STUDENTS[name][1]}
    return clsd_fast.CLSD(student, contrast=contrast, **{**of_student, **options})


class Checkpointed(nn.Module):
    def __init__(self, network: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.network, self.use_reentrant = network, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.use_reentrant:  # for which one of the inputs has to have a gradient
            x = x.clone().requires_grad_()
        return checkpoint(self.network, x, use_reentrant=self.use_reentrant)


def checkpointed(use_reentrant: bool) -> clsd_fast.CLSD:
    """As ``make("RCAN")``."""
    student = Checkpointed(network("RCAN"), use_reentrant)
    torch.manual_seed(0)
    taps = ("network.body.0", "network.body.1")
    points = {"deep": "network.tail", "shallow": "network.body"}
    return clsd_fast.CLSD(student, taps, 2, **points, scale=2)


def batch() -> tuple[Tensor, Tensor]:
    """Images in 0..1 for x2, float64."""
    return rand(3, 3, 7, 6).sigmoid(), rand(3, 3, 14, 12).sigmoid()


def hooks_of(student: nn.Module) -> list:
    return [
        hook
        for module in student.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


class Written(NamedTuple):
    sr: Tensor
    shallow: Tensor
    deep: Tensor
    #: The features after each module of the body, in its order.
    maps: list[Tensor]


def _rcan(net, x):
    shallow = net.head(net.sub_mean(x))
    *groups, end = net.body
    maps = _one_by_one(groups, shallow)
    deep = end(maps[-1]) + shallow
    return Written(net.add_mean(net.tail(deep)), shallow, deep, maps)


def _msrresnet(net, x):
    shallow = F.leaky_relu(net.conv_first(x), 0.1)
    maps = _one_by_one(net.body, shallow)
    up = F.leaky_relu(F.pixel_shuffle(net.upconv1(maps[-1]), 2), 0.1)
    image = net.conv_last(F.leaky_relu(net.conv_hr(up), 0.1))
    return Written(image + _base(x, "bilinear"), shallow, maps[-1], maps)


def _compact(net, x):
    *layers, last = net.body
    maps = _one_by_one(layers, x)
    image = F.pixel_shuffle(last(maps[-1]), 2)
    return Written(image + _base(x, "nearest"), maps[1], maps[-1], maps)


def _basicsr_edsr(net, x):
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).to(x)[:, None, None]
    shallow = net.conv_first((x - mean) * 255)
    maps = _one_by_one(net.body, shallow)
    deep = net.conv_after_body(maps[-1]) + shallow
    return Written(net.conv_last(net.upsample(deep)) / 255 + mean, shallow, deep, maps)


def _one_by_one(modules, x):
    maps = []
    for module in modules:
        x = module(x)
        maps.append(x)
    return maps


def _base(x, mode):
    return F.interpolate(x, scale_factor=2, mode=mode)


WRITTEN = {
    "RCAN": _rcan,
    "MSRResNet": _msrresnet,
    "Compact": _compact,
    "BasicSREDSR": _basicsr_edsr,
}


def plain_losses(name: str, model: clsd_fast.CLSD, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Losses of a CLSD model of that network at x2, of features that are written out.

    ``model.student`` must have no hooks that do something else."""
    found = WRITTEN[name](model.student, lr)
    tapped = {f"body.{index}": x for index, x in enumerate(found.maps)}
    skips = {
        tap: {"first": found.shallow, "tap": tapped[tap], "none": 0}[model.skip]
        for tap in model.taps
    }

    def image(tail, x):
        if name == "BasicSREDSR":
            upsampler, last, _ = tail
            return upsampled((upsampler, last), x) / 255 + 0.5
        y = upsampled(tail, x)
        return y if model.base is None else y + _base(lr, model.base)

    return plain_losses_of_features(model, hr, found.sr, found.deep, tapped, skips, image)
