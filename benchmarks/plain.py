"""EDSR and CLSD in plain PyTorch, as one writes them without this package: the baselines.

Module for module they are laid out like ``clsd_fast.EDSR`` and ``clsd_fast.CLSD``, so that a
state_dict of one loads into the other. ReLUs and additions are in place, as in EDSR-PyTorch:
eager PyTorch is faster so.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)
VALUE_RANGE = 255.0
TEMPERATURE = 0.07
PROJECTION_DIM = 128
NUM_PATCHES = 256
EPS = 1e-7


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class MeanShift(nn.Conv2d):
    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.bias.copy_(sign * VALUE_RANGE * torch.tensor(RGB_MEAN))
        self.requires_grad_(False)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).add_(x)


class Upsampler(nn.Sequential):
    def __init__(self, scale: int, channels: int) -> None:
        layers = []
        for stage in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [conv3x3(channels, channels * stage**2), nn.PixelShuffle(stage)]
        super().__init__(*layers)


def make_tail(scale: int, channels: int) -> nn.Sequential:
    return nn.Sequential(Upsampler(scale, channels), conv3x3(channels, 3))


class EDSR(nn.Module):
    def __init__(self, scale: int, num_blocks: int = 16, channels: int = 64) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(conv3x3(3, channels))
        blocks = [ResidualBlock(channels) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, conv3x3(channels, channels))
        self.tail = make_tail(scale, channels)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(self.sub_mean(lr))
        return self.add_mean(self.tail(self.body(shallow).add_(shallow)))


class Head(nn.Module):
    def __init__(self, scale: int, channels: int, num_blocks: int, projects: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.conv = conv3x3(channels, channels)
        self.tail = make_tail(scale, channels)
        self.projection = projection(channels) if projects else None

    def forward(self, tapped: Tensor, shallow: Tensor) -> Tensor:
        return self.conv(self.blocks(tapped)).add_(shallow)


class CLSD(nn.Module):
    """The losses of one training step: ``rec``, ``ds``, ``cl`` and ``total``, at value range 1.

    A weight of 0 leaves its loss out; without ``ds`` there are no heads.
    """

    def __init__(
        self,
        scale: int,
        num_blocks: int,
        channels: int,
        taps: Sequence[int],
        head_blocks: int,
        contrast: str,
        ds_weight: float = 1.0,
        contrast_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.student = EDSR(scale, num_blocks, channels)
        self.taps = tuple(taps) if ds_weight else ()
        self.contrast = contrast
        self.ds_weight = ds_weight
        self.contrast_weight = contrast_weight
        projects = bool(contrast_weight) and contrast in ("info_nce", "patch_nce")
        heads = {str(tap): Head(scale, channels, head_blocks, projects) for tap in self.taps}
        if projects:
            heads["target_projection"] = projection(channels)
        self.heads = nn.ModuleDict(heads)

    def forward(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        student = self.student
        shallow = student.head(student.sub_mean(lr))
        *blocks, end = student.body
        x, tapped = shallow, {}
        for number, block in enumerate(blocks, start=1):
            x = tapped[number] = block(x)
        deep = end(x).add_(shallow)
        heads = [self.heads[str(tap)] for tap in self.taps]
        features = [head(tapped[tap], shallow) for tap, head in zip(self.taps, heads, strict=True)]
        sr = student.add_mean(student.tail(deep))
        losses = {"rec": F.l1_loss(sr, hr) / VALUE_RANGE}
        total = losses["rec"]
        if self.ds_weight:
            images = [student.add_mean(h.tail(x)) for h, x in zip(heads, features, strict=True)]
            losses["ds"] = torch.stack([F.l1_loss(y, hr) for y in images]).mean() / VALUE_RANGE
            total = total + self.ds_weight * losses["ds"]
        if self.contrast_weight:
            losses["cl"] = self.contrastive_loss(features, deep.detach())
            total = total + self.contrast_weight * losses["cl"]
        losses["total"] = total
        return losses

    def contrastive_loss(self, features: list[Tensor], target: Tensor) -> Tensor:
        if self.contrast == "pos_only":
            terms = [F.l1_loss(x, target) / VALUE_RANGE for x in features]
        elif self.contrast == "feature_ratio":
            terms = [feature_ratio(x, target) for x in features]
        else:
            *vectors, targets = self.vectors([*features, target])
            key = self.heads["target_projection"](targets)
            terms = [
                info_nce(self.heads[str(tap)].projection(x), key)
                for tap, x in zip(self.taps, vectors, strict=True)
            ]
        return torch.stack(terms).mean()

    def vectors(self, maps: list[Tensor]) -> list[Tensor]:
        """Rows to compare: [B, C], one an image, or [B, P, C], one a position."""
        if self.contrast == "info_nce":
            return [x.mean((2, 3)) for x in maps]
        height, width = maps[0].shape[2:]
        positions = torch.randperm(height * width)[:NUM_PATCHES].to(maps[0].device)
        return [x.flatten(2)[..., positions].mT for x in maps]


def projection(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, PROJECTION_DIM)
    )


def info_nce(query: Tensor, key: Tensor) -> Tensor:
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / TEMPERATURE
    target = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def feature_ratio(features: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference to the own target over the mean one to the batch's others."""
    table = (features.unsqueeze(1) - target).abs().mean((2, 3, 4))
    own = table.diagonal()
    others = (table.sum(1) - own) / (len(table) - 1)
    return (own / (others + EPS)).mean()
