"""3x3 convolution with its epilogue."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import uses_kernel
from ..reference.conv import activate
from . import _checks
from ._images import empty_images, fake_conv_grads


class Activation(NamedTuple):
    """The operator's last arguments."""

    relu: bool = False
    negative_slope: float = 0.0
    slopes: Tensor | None = None

    def is_masked_by_output(self) -> bool:
        """Whether the output's sign is that of the result before, which a gradient depends on."""
        return self.slopes is None and not self.negative_slope < 0


ACTIVATIONS = ("relu", "leaky_relu", "prelu")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    res_scale: float | Tensor = 1.0,
    activation: str | None = None,
    negative_slope: float | Tensor = 0.01,
) -> Tensor:
    """3x3 convolution (stride 1, zero padding 1), with bias, scale, residual and activation fused.

    Equivalent to::

        y = res_scale * F.conv2d(x, weight, bias, padding=1)
        if residual is not None:
            y = residual + y
        if relu or activation == "relu":
            y = F.relu(y)
        if activation == "leaky_relu":
            y = F.leaky_relu(y, negative_slope)
        if activation == "prelu":
            y = F.prelu(y, negative_slope)

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weight: [K, C, 3, 3], of x's dtype or, beside 16-bit x, float32; of x's device.
        bias: [K], like weight, or None.
        relu: apply a ReLU last, after the residual; the same as ``activation="relu"``.
        residual: [N, K, H, W] or None.
        res_scale: factor of the convolution (bias included), before the residual; a number, or a
            floating-point tensor of one element, which gets a gradient (in plain PyTorch).
        activation: ``"relu"``, ``"leaky_relu"``, ``"prelu"`` or None; applied last.
        negative_slope: factor of negative results: a number for ``"leaky_relu"``, a tensor [1] or
            [K], like weight, for ``"prelu"``, which gets its gradient; else unused.

    Returns:
        [N, K, H, W] in x's dtype; channels_last if x is, else contiguous.

    Raises:
        ValueError: if a shape, dtype or device does not fit; if ``relu`` is set beside an
            activation; if the slope is none for the activation.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Under autocast the images are cast to the autocast dtype, the parameters are not: kernels round
    float32 weights to x's dtype themselves, and gradients have the parameters' dtype. 16-bit inputs
    are accumulated in float32, with float32 biases as they are, and rounded once.
    Saved for backward: x, weight, and the output if there is an activation. Of ``"prelu"`` and of
    ``"leaky_relu"`` with a negative slope, the output's sign does not tell the gradient: saved is
    the result before, and PyTorch's own activation follows the kernel. Where no gradient is
    recorded, the kernel applies these, too, and rounds 16-bit results once. A slope of 0 is the
    ReLU.
    Native results, gradients too, are bit-equal from run to run; on the CPU also for any number of
    threads.

    On the CPU, float32 and 16-bit maps of 16 channels and more are convolved by Winograd, as cuDNN
    does: a NaN or an infinity reaches all outputs of the 4x4 squares that see it, and beside
    a finite value v, outputs that do not see it are off by up to 2e-7 * abs(v). With
    ``CLSD_FAST_CONV=direct`` in the environment when the package is imported, a value reaches what
    it does in PyTorch (``docs/cpu.md``).

    Source: the fused epilogue is that of ``cudnnConvolutionBiasActivationForward``.
    """
    op = "conv3x3"
    x, residual = _checks.cast(x, residual)
    _checks.check_images(op, "x", x)
    _checks.check_conv(op, x, weight, bias)
    _checks.check_shape(op, "residual", residual, [x.shape[0], weight.shape[0], *x.shape[2:]])
    _checks.check_like(op, x, residual=residual)
    res_scale = _checks.number(op, "res_scale", res_scale)
    last = checked_activation(op, x, weight, relu, activation, negative_slope)
    tensors = (x, weight, bias, residual)
    if not uses_kernel(op, x, weight, number=res_scale):
        with _checks.without_autocast(x):
            return reference.conv3x3(*tensors, res_scale, *last)
    if not last.is_masked_by_output():
        if _checks.records_gradient(*tensors, last.slopes):
            with _checks.without_autocast(x):
                return activate(_conv3x3(*tensors, res_scale, *Activation()), *last)
        if last.slopes is not None:
            last = last._replace(slopes=last.slopes.expand(weight.shape[0]))
    return _conv3x3(*tensors, res_scale, *last)


def checked_activation(
    op: str,
    x: Tensor,
    weight: Tensor,
    relu: bool,
    activation: str | None,
    negative_slope: float | Tensor,
) -> Activation:
    """The activation that is asked for, checked."""
    if not isinstance(relu, int):
        _checks.fail(op, "relu True or False", type(relu).__name__)
    if activation is None:
        return Activation(relu)
    if activation not in ACTIVATIONS:
        _checks.fail(op, f"activation {', '.join(ACTIVATIONS)} or None", activation)
    if relu:
        _checks.fail(op, f"no relu=True beside activation {activation}", "both")
    if activation == "relu":
        return Activation(True)
    if activation == "leaky_relu":
        if isinstance(negative_slope, Tensor):
            _checks.fail(op, "negative_slope a number for leaky_relu", "a tensor, as prelu takes")
        slope = _checks.number(op, "negative_slope", negative_slope)
        return Activation(True, cast(float, slope))
    if not isinstance(negative_slope, Tensor):
        _checks.fail(op, "negative_slope a tensor for prelu", negative_slope)
    shape, channels = list(negative_slope.shape), weight.shape[0]
    if shape not in ([1], [channels]):
        _checks.fail(op, f"negative_slope of shape [1] or [{channels}]", shape)
    _checks.check_parameters(op, x, weight, weight=weight, negative_slope=negative_slope)
    return Activation(True, 0.0, negative_slope)


def _fake(x, weight, bias, residual, res_scale, relu, negative_slope=0.0, slopes=None):
    return empty_images(x, weight.shape[0])


def _fake_backward(grad_output, x, weight, res_scale, needs_x, needs_weight, needs_bias):
    return fake_conv_grads(x, weight, needs_x, needs_weight, needs_bias)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, res_scale, *activation = inputs
    last = Activation(*activation)
    ctx.save_for_backward(x, weight, output if last.relu else None)
    ctx.res_scale = res_scale
    ctx.negative_slope = last.negative_slope if last.is_masked_by_output() else None


def _backward(ctx, grad_output):
    x, weight, output = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    if output is not None:
        grad_output = _masked(grad_output, output, ctx.negative_slope)
    needs = (needs_x, needs_weight, needs_bias)
    grads: Sequence[Tensor | None] = (None, None, None)
    if any(needs):
        arguments = (grad_output, x, weight, ctx.res_scale, *needs)
        grads = _checks.given(_conv3x3_backward(*arguments), needs)
    return *grads, grad_output if needs_residual else None, None, None, None, None


def _masked(grad_output: Tensor, output: Tensor, negative_slope: float | None) -> Tensor:
    """The gradient of what the activation was applied to."""
    if negative_slope is None:
        raise RuntimeError(
            "conv3x3: expected negative_slope >= 0 and no slopes for a gradient, got others"
        )
    if negative_slope == 0:
        return torch.ops.aten.threshold_backward(grad_output, output, 0)
    return torch.ops.aten.leaky_relu_backward(grad_output, output, negative_slope, True)


_conv3x3 = register(
    "conv3x3",
    reference=reference.conv3x3,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_conv3x3_backward = register(
    "conv3x3_backward", reference=reference.conv3x3_backward, fake=_fake_backward
)
