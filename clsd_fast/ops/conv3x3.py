"""3x3 convolution with its epilogue."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import uses_kernel
from . import _checks
from ._images import empty_images, fake_conv_grads


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    res_scale: float | Tensor = 1.0,
) -> Tensor:
    """3x3 convolution (stride 1, zero padding 1) with bias, scale, residual and ReLU fused.

    Equivalent to::

        y = res_scale * F.conv2d(x, weight, bias, padding=1)
        if residual is not None:
            y = residual + y
        if relu:
            y = F.relu(y)

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weight: [K, C, 3, 3], of x's dtype or, beside 16-bit x, float32; of x's device.
        bias: [K], like weight, or None.
        relu: apply a ReLU last, after the residual.
        residual: [N, K, H, W] or None.
        res_scale: factor of the convolution (bias included), before the residual; a number, or a
            floating-point tensor of one element, which gets a gradient (in plain PyTorch).

    Returns:
        [N, K, H, W] in x's dtype; channels_last if x is, else contiguous.

    Raises:
        ValueError: if a shape, dtype or device does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Under autocast the images are cast to the autocast dtype, the parameters are not: kernels round
    float32 weights to x's dtype themselves, and gradients have the parameters' dtype. 16-bit inputs
    are accumulated in float32, with float32 biases as they are, and rounded once.
    Saved for backward: x, weight, and the output if ``relu``.
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
    if uses_kernel(op, x, weight, number=res_scale):
        return _conv3x3(x, weight, bias, residual, res_scale, relu)
    with _checks.without_autocast(x):
        return reference.conv3x3(x, weight, bias, residual, res_scale, relu)


def _fake(x, weight, bias, residual, res_scale, relu):
    return empty_images(x, weight.shape[0])


def _fake_backward(grad_output, x, weight, res_scale, needs_x, needs_weight, needs_bias):
    return fake_conv_grads(x, weight, needs_x, needs_weight, needs_bias)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, res_scale, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.res_scale = res_scale


def _backward(ctx, grad_output):
    x, weight, output = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    if output is not None:
        grad_output = torch.ops.aten.threshold_backward(grad_output, output, 0)
    needs = (needs_x, needs_weight, needs_bias)
    grads: Sequence[Tensor | None] = (None, None, None)
    if any(needs):
        arguments = (grad_output, x, weight, ctx.res_scale, *needs)
        grads = _checks.given(_conv3x3_backward(*arguments), needs)
    return *grads, grad_output if needs_residual else None, None, None


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
