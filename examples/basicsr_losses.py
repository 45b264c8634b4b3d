"""This package's losses by name in BasicSR's options: import this file before training starts.

BasicSR's training script imports it beside its own losses. An entry of the options is then, with
the arguments of the class:

    contrast_opt:
      type: PatchNCELoss
      num_patches: 256
      loss_weight: 0.1

and a model makes it as it makes the others, by ``build_loss(train_opt["contrast_opt"])``. What is
expected of the registry is ``register(cls)``, under the name of the class, as of BasicSR 1.4; the
one of traiNNer-redux, in ``traiNNer.utils.registry``, is called alike.
"""

from basicsr.utils.registry import LOSS_REGISTRY

from clsd_fast.nn import DistanceRatioLoss, FeatureRatioLoss, InfoNCELoss, PatchNCELoss

for loss in (InfoNCELoss, PatchNCELoss, DistanceRatioLoss, FeatureRatioLoss):
    LOSS_REGISTRY.register(loss)
