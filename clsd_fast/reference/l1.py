"""Mean absolute errors in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import in_format_of


def l1_losses(target: Tensor, images: list[Tensor], value_range: float) -> tuple[Tensor, Tensor]:
    """That of the first image and the mean of the others', as in ``SCHEMAS``."""
    first, *others = (F.l1_loss(image, target) / value_range for image in images)
    # Without others it is no one's, and must not be the first's memory.
    return first, torch.stack(others or [first.detach()]).mean()


def l1_losses_backward(
    grad_first: Tensor | None,
    grad_others: Tensor | None,
    target: Tensor,
    images: list[Tensor],
    value_range: float,
) -> list[Tensor]:
    """Gradients of the images."""
    divisor = target.numel() * value_range
    scales = [
        grad if grad is None else grad / (divisor * count)
        for grad, count in ((grad_first, 1), (grad_others, max(1, len(images) - 1)))
    ]
    grads = []
    for number, image in enumerate(images):
        scale = scales[number > 0]
        grad = torch.zeros_like(image) if scale is None else (image - target).sgn().mul_(scale)
        grads.append(in_format_of(images[0], grad))
    return grads
