"""From a configuration to a model."""

import torch

from clsd_fast import CLSD, EDSR

from .config import Config
from .errors import UserError


def build_model(config: Config) -> CLSD:
    """The student under its method's losses; the same seed gives the same student.

    Plain training is CLSD without heads, so that every method runs through the same code.

    Raises:
        UserError: if the options do not fit together.
    """
    torch.manual_seed(config.train.seed)
    model, heads = config.model, config.heads
    ds_weight, contrast_weight = config.loss_weights
    # Without heads the taps mean nothing; the default ones would refuse a short student.
    taps = heads.taps if ds_weight or contrast_weight else (1,)
    try:
        student = EDSR(config.scale, model.num_blocks, model.channels, model.res_scale)
        return CLSD(
            student,
            taps,
            heads.blocks,
            heads.contrast,
            ds_weight=ds_weight,
            contrast_weight=contrast_weight,
            skip=heads.skip,
            share_tail=heads.share_tail,
            projection_dim=heads.projection_dim,
            temperature=heads.temperature,
            num_patches=heads.num_patches,
            eps=heads.eps,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
