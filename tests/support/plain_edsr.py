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


def convolved(module, x):
    return F.conv2d(x, module.weight, module.bias, padding=1)


def upsampled(tail, x):
    upsampler, last = tail
    for layer in upsampler:
        x = convolved(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
    return convolved(last, x)


def residual(block, x):
    first, _, second = block.body
    return x + convolved(second, F.relu(convolved(first, x)))


def plain_clsd_losses(model, lr, hr):
    """Losses of a CLSD model of an EDSR written out, from plain operations on its parameters."""

    def image(tail, x):
        return student.add_mean(upsampled(tail, x))

    student = model.student
    shallow = convolved(student.head[0], student.sub_mean(lr))
    x, tapped = shallow, {}
    *blocks, end = student.body
    for number, module in enumerate(blocks, start=1):
        x = tapped[number] = residual(module, x)
    deep = convolved(end, x) + shallow
    skips = dict.fromkeys(model.taps, shallow)
    sr = image(student.tail, deep)
    return plain_losses_of_features(model, hr, sr, deep, tapped, skips, image)


def plain_losses_of_features(model, hr, sr, deep, tapped, skips, image):
    """The same of any student's images, features G, features after each tap and what is added to
    those of its head; ``image`` makes a head's image by its tail."""
    value_range, features, images = model.value_range, [], []
    heads = {tap: model.heads[str(tap).replace(".", "/")] for tap in model.taps}
    for tap, head in heads.items():
        z = tapped[tap]
        for module in head.blocks:
            z = residual(module, z)
        features.append(convolved(head.conv, z) + skips[tap])
        images.append(image(head.tail, features[-1]))
    losses = {"rec": (sr - hr).abs().mean() / value_range}
    losses["ds"] = sum((y - hr).abs().mean() for y in images) / len(images) / value_range
    target = deep.detach()
    if model.contrast == "info_nce":
        key = model.heads["target_projection"](target.mean((2, 3)))
        terms = [
            plain_info_nce(head.projection(g.mean((2, 3))), key, model.temperature)
            for head, g in zip(heads.values(), features, strict=True)
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
