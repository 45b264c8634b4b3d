"""A loop and a network of your own, on this package's kernels and with one of its losses.

In place of ``Network`` put yours, in place of the noise a DataLoader of (LR, HR) images.
"""

import torch
from torch import nn

import clsd_fast


class Network(nn.Module):
    def __init__(self, channels: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        self.tail = nn.Sequential(last, nn.PixelShuffle(scale))

    def forward(self, lr):
        middle = self.first(lr).relu()
        deep = self.second(middle).relu()
        return self.tail(deep), middle, deep


def train(model, batches, learning_rate=1e-3):
    model = clsd_fast.accelerate(model).train()
    contrast = clsd_fast.nn.PatchNCELoss(num_patches=64, loss_weight=0.1)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for lr, hr in batches:
        sr, middle, deep = model(lr)
        loss = nn.functional.l1_loss(sr, hr) + contrast(middle, deep.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"{loss.item():.4f}")


if __name__ == "__main__":
    train(Network(), [(x[..., ::2, ::2], x) for x in torch.rand(10, 4, 3, 48, 48)])
