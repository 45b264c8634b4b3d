"""One step of the optimisation. Nothing in it waits for the device: a CUDA graph can hold it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clsd_fast import EDSR

from .config import TrainConfig
from .meter import Meter
from .ranks import unshared

AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """From a batch to the update of the parameters, all on tensors that stay where they are.

    Called again, or replayed by a CUDA graph, :meth:`update` is the next step: all that differs
    between steps is in the batch, in ``rate``, and in what the step itself has changed.

    Args:
        model: called with images and their targets, float32 [B, 3, h, w] in 0..255, it returns an
            output with ``losses``: 0-dim tensors by name, of which ``total`` is minimised.
        student: the part of it that ships.
        options: of the optimisation.
    """

    def __init__(self, model: nn.Module, student: EDSR, options: TrainConfig) -> None:
        self.model, self._trained, self._options = model, student, options
        self.device = next(model.parameters()).device
        self._dtype = AUTOCAST[options.precision]
        self.rate = torch.zeros((), device=self.device)
        self._groups: dict[str, Any] = {
            "lr": self.rate,
            "betas": options.betas,
            "eps": options.eps,
            "fused": True,
            "capturable": self.device.type == "cuda",
        }
        self.optimizer = torch.optim.Adam(model.parameters(), **self._groups)
        self.scaler = self._make_scaler()
        self.meter = Meter(self.device)
        # PyTorch's AveragedModel would wait for its counter at each update.
        self.average = copy.deepcopy(student).requires_grad_(False) if options.ema else None
        self._update_average = get_ema_multi_avg_fn(options.ema)

    @property
    def student(self) -> EDSR:
        """What is worth keeping: the average of the weights, if there is one."""
        return self.average or self._trained

    def update(self, lr_images: Tensor, hr_images: Tensor) -> None:
        """One step on uint8 images [B, h, w, 3] and their targets."""
        self.optimizer.zero_grad(set_to_none=True)
        count = self._options.accumulate
        *parts, last = zip(lr_images.chunk(count), hr_images.chunk(count), strict=True)
        with unshared(self.model):
            losses = [self._backward(lr, hr, 1 / count) for lr, hr in parts]
        losses.append(self._backward(*last, 1 / count))
        if self._options.clip:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self._options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            averages, current = (list(m.parameters()) for m in (self.average, self._trained))
            self._update_average(averages, current, None)
        self.meter.add(losses)

    def _backward(self, lr_images: Tensor, hr_images: Tensor, share: float) -> dict[str, Tensor]:
        """Add a part's gradients; returns its losses."""
        lr, hr = (images.permute(0, 3, 1, 2).float() for images in (lr_images, hr_images))
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            losses = self.model(lr, hr).losses
        self.scaler.scale(losses["total"] * share).backward()
        return losses

    def _make_scaler(self) -> torch.amp.GradScaler:
        """Float16 alone has gradients that are too small for it."""
        return torch.amp.GradScaler(self.device.type, enabled=self._dtype is torch.float16)

    def renew(self) -> None:
        """Forget a step that has ended in the middle."""
        state = self.scaler.state_dict()
        self.scaler = self._make_scaler()
        self.scaler.load_state_dict(state)

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by so that float16 can hold its gradients."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside the model, and the losses since the last log."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict(),
            "average": self.average.state_dict() if self.average else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with the options that this step was made with.

        The model has its weights already: an average that the state has not begins with them. The
        state may have other keys too.

        Raises:
            ValueError: if the optimizer's is of other parameters.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            if any(value.shape not in (parameter.shape, ()) for value in values.values()):
                raise ValueError("the optimizer's state is another model's")
            for name, value in values.items():
                if value.shape and value.stride() != parameter.stride():
                    # PyTorch's fused Adam on a CPU reads both in the order of their memory.
                    values[name] = torch.empty_like(parameter).copy_(value)
        for group in self.optimizer.param_groups:
            group.update(self._groups)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.meter.load_state_dict(state["meter"])
        if self.average:
            self.average.load_state_dict(state["average"] or self._trained.state_dict())

    def is_finite(self) -> bool:
        """Whether all that the step has made is."""
        moments = (v for values in self.optimizer.state.values() for v in values.values())
        tensors = [*self.model.parameters(), *self.student.parameters(), *moments]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
