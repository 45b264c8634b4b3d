"""Small networks of the kinds that people have, with the names of modules that those have.

Written after the public descriptions; what `clsd_fast.accelerate` is tried on.
"""

from collections.abc import Callable

from torch import nn

from .attention import RCAN
from .cascade import CARN, DRLN
from .dense import RDN, RRDBNet
from .distilled import RFDN
from .residual import EDSR, KAIREDSR, BasicSREDSR, MSRResNet
from .stacked import VDSR, ArtCNN, Compact, NinaSR

#: Each takes ``scale`` and ``channels``, RGB images in, RGB images out.
ZOO: dict[str, Callable[..., nn.Module]] = {
    network.__name__: network
    for network in (
        EDSR,
        BasicSREDSR,
        MSRResNet,
        KAIREDSR,
        RCAN,
        CARN,
        DRLN,
        RDN,
        RRDBNet,
        RFDN,
        VDSR,
        Compact,
        ArtCNN,
        NinaSR,
    )
}
