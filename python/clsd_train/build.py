"""From a configuration to a model."""

from typing import Any

import torch
import torch.distributed as dist

from clsd_fast import CLSD, EDSR

from .checkpoint import load_student
from .config import Config
from .errors import UserError
from .rivals import FAKD, LFD, Distillation
from .vgg import PerceptualCLSD, load_vgg

RIVALS = ("fakd", "lfd")


def build_model(
    config: Config, group: "dist.ProcessGroup | None" = None
) -> CLSD[EDSR] | Distillation:
    """The student under its method's losses; the same seed gives the same student.

    Plain training is CLSD without heads. Whatever the method, the model has a ``student`` and, in
    ``train()``, gives a :class:`clsd_fast.CLSDOutput`.

    Args:
        config: the run.
        group: of the ranks that train it together.

    Raises:
        UserError: if the options do not fit together, or a file of weights is not what they need.
    """
    # Reading weights draws numbers: before the seed, so that methods start from one student.
    teacher = _load_teacher(config) if config.method in RIVALS else None
    torch.manual_seed(config.train.seed)
    model = config.model
    try:
        student = EDSR(config.scale, model.num_blocks, model.channels, model.res_scale)
        return _distil(config, student, teacher) if teacher else _contrast(config, student, group)
    except ValueError as error:
        raise UserError(str(error)) from None


def _load_teacher(config: Config) -> EDSR:
    options = config.teacher
    if options.checkpoint is None:
        raise UserError(
            f"config: teacher.checkpoint: expected the weights of an EDSR for {config.method}, "
            "got none"
        )
    reading = options.res_scale, options.value_range, options.mean_shift
    return load_student(options.checkpoint, *reading)


def _distil(config: Config, student: EDSR, teacher: EDSR) -> Distillation:
    options = config.teacher
    if config.method == "fakd":
        return FAKD(student, teacher, options.depths, options.affinity_weight)
    return LFD(student, teacher, options.depths, options.feature_weight)


def _contrast(config: Config, student: EDSR, group: "dist.ProcessGroup | None") -> CLSD[EDSR]:
    heads = config.heads
    ds_weight, contrast_weight = config.loss_weights
    # Without heads the taps mean nothing; the default ones would refuse a short student.
    taps = heads.taps if ds_weight or contrast_weight else (1,)
    options: dict[str, Any] = {
        "taps": taps,
        "head_blocks": heads.blocks,
        "ds_weight": ds_weight,
        "contrast_weight": contrast_weight,
        "skip": heads.skip,
        "share_tail": heads.share_tail,
        "eps": heads.eps,
    }
    if contrast_weight and heads.contrast == "vgg_ratio":
        if heads.vgg is None:
            raise UserError("config: heads.vgg: expected a file of VGG19's weights, got none")
        # Making a network draws numbers, too.
        with torch.random.fork_rng(devices=[]):
            vgg = load_vgg(heads.vgg)
        return PerceptualCLSD(student, vgg, **options)
    return CLSD(
        student,
        # Without the loss its kind means nothing, and the student's package knows no vgg_ratio.
        contrast="info_nce" if heads.contrast == "vgg_ratio" else heads.contrast,
        projection_dim=heads.projection_dim,
        temperature=heads.temperature,
        num_patches=heads.num_patches,
        group=group if heads.gather_keys else None,
        **options,
    )
