"""EDSR in plain PyTorch with EDSR-PyTorch's layout of modules: the oracle of the student."""

import torch
import torch.nn.functional as F
from torch import nn


class PlainBlock(nn.Module):
    def __init__(self, channels, res_scale):
        super().__init__()
        conv = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        self.body = nn.Sequential(conv[0], nn.ReLU(), conv[1])
        self.res_scale = res_scale

    def forward(self, x):
        return x + self.res_scale * self.body(x)


class PlainEDSR(nn.Module):
    def __init__(self, scale, num_blocks, channels, res_scale=1.0):
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
        blocks = [PlainBlock(channels, res_scale) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 3, padding=1))
        up = []
        for stage in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            up += [nn.Conv2d(channels, channels * stage**2, 3, padding=1), nn.PixelShuffle(stage)]
        self.tail = nn.Sequential(nn.Sequential(*up), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x):
        shallow = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(shallow) + shallow))


class BasicSRBlock(nn.Module):
    def __init__(self, channels, res_scale):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.res_scale = res_scale

    def forward(self, x):
        return x + self.res_scale * self.conv2(F.relu(self.conv1(x)))


class BasicSREDSR(nn.Module):
    """As BasicSR lays it out: images in 0..1, the mean colour no weight."""

    def __init__(self, scale, num_blocks, channels, res_scale=1.0, img_range=255.0):
        super().__init__()
        self.mean, self.img_range = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None], img_range
        plain = PlainEDSR(scale, 0, channels)
        self.conv_first, self.conv_after_body = plain.head[0], plain.body[0]
        self.body = nn.Sequential(*(BasicSRBlock(channels, res_scale) for _ in range(num_blocks)))
        self.upsample, self.conv_last = plain.tail

    def forward(self, x):
        shallow = self.conv_first((x - self.mean) * self.img_range)
        deep = self.conv_after_body(self.body(shallow)) + shallow
        return self.conv_last(self.upsample(deep)) / self.img_range + self.mean


def plain_info_nce(query, key, temperature):
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / temperature
    target = torch.arange(logits.shape[-1]).expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def plain_clsd_losses(model, lr, hr):
    """Losses of a CLSD model written out, from plain operations on its parameters."""

    def block(module, x):
        first, _, second = module.body
        hidden = F.relu(F.conv2d(x, first.weight, first.bias, padding=1))
        return x + F.conv2d(hidden, second.weight, second.bias, padding=1)

    def conv(module, x):
        return F.conv2d(x, module.weight, module.bias, padding=1)

    def image(tail, x):
        upsampler, last = tail
        for layer in upsampler:
            x = conv(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return student.add_mean(conv(last, x))

    student, value_range = model.student, model.student.value_range
    shallow = conv(student.head[0], student.sub_mean(lr))
    x, tapped = shallow, {}
    *blocks, end = student.body
    for number, module in enumerate(blocks, start=1):
        x = tapped[number] = block(module, x)
    deep = conv(end, x) + shallow
    features = []
    for tap in model.taps:
        head, z = model.heads[str(tap)], tapped[tap]
        for module in head.blocks:
            z = block(module, z)
        features.append(conv(head.conv, z) + shallow)
    losses = {"rec": (image(student.tail, deep) - hr).abs().mean() / value_range}
    images = [image(model.heads[str(t)].tail, g) for t, g in zip(model.taps, features, strict=True)]
    losses["ds"] = sum((y - hr).abs().mean() for y in images) / len(images) / value_range
    target = deep.detach()
    if model.contrast == "info_nce":
        key = model.heads["target_projection"](target.mean((2, 3)))
        terms = [
            plain_info_nce(model.heads[str(t)].projection(g.mean((2, 3))), key, model.temperature)
            for t, g in zip(model.taps, features, strict=True)
        ]
    elif model.contrast == "pos_only":
        terms = [(g - target).abs().mean() / value_range for g in features]
    else:
        terms = []
        for g in features:
            table = (g.unsqueeze(1) - target.unsqueeze(0)).abs().mean((2, 3, 4))
            own = table.diagonal()
            terms.append((own / ((table.sum(1) - own) / (len(g) - 1) + 1e-7)).mean())
    losses["cl"] = sum(terms) / len(terms)
    losses["total"] = losses["rec"] + model.ds_weight * losses["ds"]
    losses["total"] = losses["total"] + model.contrast_weight * losses["cl"]
    return losses
