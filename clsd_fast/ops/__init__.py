"""The fused operators, one module each."""

from .conv3x3 import conv3x3
from .distance_ratio_loss import distance_ratio_loss
from .info_nce import info_nce
from .pairwise_similarity import pairwise_similarity
from .pixel_shuffle_upsample import pixel_shuffle_upsample
from .residual_block import residual_block
from .residual_blocks import residual_blocks
from .upsample_tail import upsample_tail

__all__ = [
    "conv3x3",
    "distance_ratio_loss",
    "info_nce",
    "pairwise_similarity",
    "pixel_shuffle_upsample",
    "residual_block",
    "residual_blocks",
    "upsample_tail",
]
