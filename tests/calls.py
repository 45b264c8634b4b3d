"""One small valid call of every public operator, as (function, tensors)."""

from functools import partial

from util import rand

import clsd_fast

IMAGES = {
    "conv3x3": (
        lambda x, w, b, r: clsd_fast.conv3x3(x, w, b, residual=r, res_scale=0.5, relu=True),
        lambda: [rand(2, 4, 5, 6), rand(6, 4, 3, 3), rand(6), rand(2, 6, 5, 6)],
    ),
    "residual_block": (
        partial(clsd_fast.residual_block, res_scale=0.5),
        lambda: [rand(2, 4, 5, 6), rand(4, 4, 3, 3), rand(4), rand(4, 4, 3, 3, seed=1), rand(4)],
    ),
    "pixel_shuffle_upsample": (
        partial(clsd_fast.pixel_shuffle_upsample, upscale_factor=2),
        lambda: [rand(2, 4, 5, 6), rand(8, 4, 3, 3), rand(8)],
    ),
}
ROWS = {
    **{
        f"pairwise_similarity {metric}": (
            partial(clsd_fast.pairwise_similarity, metric=metric),
            lambda: [rand(2, 7, 9), rand(2, 5, 9)],
        )
        for metric in ("cosine", "dot", "l1")
    },
    "info_nce": (clsd_fast.info_nce, lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1)]),
    "info_nce negatives": (
        clsd_fast.info_nce,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1), rand(2, 5, 9)],
    ),
    "distance_ratio_loss": (
        clsd_fast.distance_ratio_loss,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1)],
    ),
    "distance_ratio_loss negatives": (
        clsd_fast.distance_ratio_loss,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1), rand(2, 5, 9)],
    ),
}
CALLS = {**IMAGES, **ROWS}
