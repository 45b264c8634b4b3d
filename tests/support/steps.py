"""A training step of CLSD under autocast, held to that of plain PyTorch."""

import torch
from torch import Tensor

from clsd_fast import CLSD


def step(
    model: CLSD, lr: Tensor, hr: Tensor, dtype: torch.dtype = torch.bfloat16, autocasts: bool = True
) -> list[Tensor]:
    """The losses as one vector, and the gradient of every parameter."""
    with torch.autocast(lr.device.type, dtype, enabled=autocasts):
        losses = model(lr, hr).losses
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Gradients of a mean over all pixels would be subnormal float16 numbers.
    grads = torch.autograd.grad(losses["total"] * hr.numel(), parameters)
    return [torch.stack([loss.detach() for loss in losses.values()]), *grads]


def exact_step(model: CLSD, lr: Tensor, hr: Tensor) -> list[Tensor]:
    """The same in float64, which the model is afterwards."""
    return step(model.double(), lr.double(), hr.double(), autocasts=False)


def assert_step_close(
    ours: list[Tensor], exact: list[Tensor], theirs: list[Tensor], dtype: torch.dtype
) -> None:
    """The tolerance rule in norms: the largest error of a deep network is a matter of luck."""
    roundoff = torch.finfo(dtype).eps
    scales = 1.0, (len(exact) - 1) ** 0.5
    pairs = zip(relative_errors(ours, exact), relative_errors(theirs, exact), scales, strict=True)
    for error, their_error, scale in pairs:
        assert error <= 2 * their_error + roundoff * scale


def relative_errors(results: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Of the losses, and of the gradients: the norm of all tensors' relative errors."""
    errors = [
        ((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)
    ]
    return errors[0], torch.tensor(errors[1:]).norm().item()
