"""Fused kernels, losses and modules for training small super-resolution networks."""

from . import _flops, backend, losses, nn, ops
from ._accelerate import accelerate, restore
from .backend import use_backend
from .distill import CLSD, CLSDOutput
from .edsr import EDSR
from .ops import (
    conv3x3,
    distance_ratio_loss,
    info_nce,
    pairwise_similarity,
    pixel_shuffle_upsample,
    residual_block,
    residual_blocks,
    upsample_tail,
)

# Not before `ops` has registered what every device has.
backend.load()
_flops.register()

__version__ = "0.1.0"
__all__ = [
    "CLSD",
    "CLSDOutput",
    "EDSR",
    "accelerate",
    "conv3x3",
    "distance_ratio_loss",
    "info_nce",
    "losses",
    "nn",
    "ops",
    "pairwise_similarity",
    "pixel_shuffle_upsample",
    "residual_block",
    "residual_blocks",
    "restore",
    "upsample_tail",
    "use_backend",
]
