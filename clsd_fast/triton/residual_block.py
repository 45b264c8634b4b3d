"""The residual block of EDSR: a chain of one (``residual_blocks``)."""

from torch import Tensor

from .residual_blocks import residual_blocks, residual_blocks_backward


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    res_scale: float,
    save_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the hidden map if it is to be saved."""
    biases1, biases2 = ([] if bias is None else [bias] for bias in (bias1, bias2))
    (output,), hiddens = residual_blocks(
        [x], [weight1], biases1, [weight2], biases2, res_scale, [1], save_hidden
    )
    return output, hiddens[0] if save_hidden else x.new_empty(0)


def residual_block_backward(
    grad_output: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    res_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, weight1, bias1, weight2 and bias2; empty if not needed."""
    weights = ([weight1], [weight2])
    grads = residual_blocks_backward(
        [grad_output], [1], [x], [], [hidden], *weights, res_scale, needs_x, needs_params
    )
    return tuple(tensor for (tensor,) in grads)
