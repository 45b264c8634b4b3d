"""Every operator in plain PyTorch: the oracle of the tests and the fallback.

The functions named like an operator take its arguments and give its results, for any floating dtype
and any device, and are differentiable to any order. Those named ``*_backward`` write the gradient
out, for the dispatcher's calls from outside autograd.
"""

from .contrast import (
    distance_ratio_loss,
    distance_ratio_loss_backward,
    info_nce,
    info_nce_backward,
    pairwise_similarity,
    pairwise_similarity_backward,
)
from .conv import (
    conv3x3,
    conv3x3_backward,
    conv3x3s,
    conv3x3s_backward,
    pixel_shuffle_upsample,
    pixel_shuffle_upsample_backward,
    residual_block,
    residual_block_backward,
    residual_blocks,
    residual_blocks_backward,
)
from .l1 import l1_losses, l1_losses_backward
from .tail import (
    upsample_tail,
    upsample_tail_backward,
    upsample_tails,
    upsample_tails_backward,
)

__all__ = [
    "conv3x3",
    "conv3x3_backward",
    "conv3x3s",
    "conv3x3s_backward",
    "distance_ratio_loss",
    "distance_ratio_loss_backward",
    "info_nce",
    "info_nce_backward",
    "l1_losses",
    "l1_losses_backward",
    "pairwise_similarity",
    "pairwise_similarity_backward",
    "pixel_shuffle_upsample",
    "pixel_shuffle_upsample_backward",
    "residual_block",
    "residual_block_backward",
    "residual_blocks",
    "residual_blocks_backward",
    "upsample_tail",
    "upsample_tail_backward",
    "upsample_tails",
    "upsample_tails_backward",
]
