"""``vgg_ratio``: contrast between images in the features of VGG19, whose weights the user has."""

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clsd_fast import CLSD, EDSR, CLSDOutput, conv3x3

from .architecture import check_weights
from .checkpoint import read_tensors
from .errors import UserError

# Channels of VGG19's convolutions up to relu5_1, and where the maps are halved before the next.
POOL = 0
LAYERS = (64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, 512)
# Of relu1_1, ..., relu5_1: the first convolution of each resolution.
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
# What torchvision's weights were trained on: images in 0..1, less these, over these.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG19(nn.Module):
    """VGG19 up to relu5_1, frozen, with torchvision's names of parameters.

    Source: Simonyan and Zisserman (arXiv 1409.1556).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        channels, index = 3, 0
        for layer in LAYERS:
            if layer is not POOL:
                self.features[str(index)] = nn.Conv2d(channels, layer, 3, padding=1)
                channels = layer
            index += 1 if layer is POOL else 2  # the ReLU is a layer of torchvision's
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """relu1_1, ..., relu5_1 of images [B, 3, H, W] in 0..1.

        Raises:
            ValueError: if nothing of the image is left after four halvings.
        """
        if min(images.shape[-2:]) < 16:
            got = list(images.shape)
            raise ValueError(f"vgg_ratio: expected images of at least 16 pixels a side, got {got}")
        x = (images - self.mean) / self.deviation
        maps, convs, is_first = [], iter(self.features.values()), True
        for layer in LAYERS:
            if layer is POOL:
                x = F.max_pool2d(x, 2)
            else:
                conv = cast(nn.Conv2d, next(convs))
                x = conv3x3(x, conv.weight, conv.bias, relu=True)
                maps += [x] * is_first
            is_first = layer is POOL
        return maps


class PerceptualCLSD(CLSD[EDSR]):
    """:class:`clsd_fast.CLSD` whose contrastive loss looks at the heads' images through VGG19.

    With phi_l the features relu1_1, ..., relu5_1 and w_l = 1/32, 1/16, 1/8, 1/4, 1, D the mean
    absolute difference, y_k a head's image, y the target and u the bicubic image::

        cl = mean over k of sum_l w_l D(phi_l(y_k), phi_l(y)) / (D(phi_l(y_k), phi_l(u)) + eps)

    The negatives are the bicubic images. Features are float32 whatever the images are. VGG19
    follows the module to a device or memory format, and is neither in ``parameters()`` nor in
    ``state_dict()``.

    Args:
        student: trained in place.
        vgg: the features.
        ds_weight: weight of deep supervision; with 0, heads have tails for the contrast alone.
        contrast_weight: weight of the contrastive loss.
        eps: added to the denominator.
        options: of :class:`clsd_fast.CLSD`, but for ``contrast`` and what belongs to its kinds.

    Source: CSD (arXiv 2105.11683), AECR-Net (arXiv 2104.09367).
    """

    def __init__(
        self,
        student: EDSR,
        vgg: VGG19,
        *,
        ds_weight: float = 1.0,
        contrast_weight: float = 0.1,
        eps: float = 1e-7,
        **options: Any,
    ) -> None:
        # Heads have tails under deep supervision alone, and no projections without a contrast.
        super().__init__(student, ds_weight=1.0, contrast_weight=0.0, **options)
        self._outside = (vgg.eval(),)
        self._weights = ds_weight, contrast_weight
        self.eps = eps

    def _apply(self, fn: Any, recurse: bool = True) -> "PerceptualCLSD":
        self._outside[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, lr: Tensor, hr: Tensor | None = None) -> CLSDOutput | Tensor:
        """As of :class:`clsd_fast.CLSD`."""
        output = super().forward(lr, hr)
        if isinstance(output, Tensor) or hr is None:
            return output
        ds_weight, contrast_weight = self._weights
        losses = {"rec": output.losses["rec"]}
        total = losses["rec"]
        if ds_weight:
            losses["ds"] = output.losses["ds"]
            total = total + ds_weight * losses["ds"]
        losses["cl"] = self._ratio(output.head_sr, lr, hr)
        losses["total"] = total + contrast_weight * losses["cl"]
        return output._replace(losses=losses)

    def _ratio(self, head_sr: tuple[Tensor, ...], lr: Tensor, hr: Tensor) -> Tensor:
        (vgg,), white = self._outside, self.value_range

        def look(images: Tensor) -> list[Tensor]:
            # Differences of features that are nearly equal have no digits left in 16 bits.
            return vgg(images.to(vgg.mean.dtype) / white)

        with torch.no_grad():
            positives = look(hr)
            negatives = look(bicubic(lr, self.scale))
        of_heads = [
            features_ratio(look(image), positives, negatives, self.eps) for image in head_sr
        ]
        return torch.stack(of_heads).mean()


def features_ratio(
    features: list[Tensor], positives: list[Tensor], negatives: list[Tensor], eps: float | Tensor
) -> Tensor:
    """The weighted sum over layers of the distance to positives over that to negatives."""
    layers = zip(LAYER_WEIGHTS, features, positives, negatives, strict=True)
    ratios = [
        weight * F.l1_loss(own, positive) / (F.l1_loss(own, negative) + eps)
        for weight, own, positive, negative in layers
    ]
    return torch.stack(ratios).sum()


def bicubic(images: Tensor, scale: int) -> Tensor:
    """float32 images [B, 3, scale h, scale w] by MATLAB's bicubic but for border and rounding."""
    # With antialias PyTorch's cubic has MATLAB's coefficient (-0.5).
    return F.interpolate(images.float(), scale_factor=scale, mode="bicubic", antialias=True)


def load_vgg(path: Path) -> VGG19:
    """VGG19 with the weights of a file that torchvision's model fits: .safetensors or .pt, .pth.

    Raises:
        UserError: if it is missing, unreadable, or of another network.
    """
    state = read_tensors(path)
    vgg = VGG19()
    own = vgg.state_dict()
    first = "features.0.weight"
    if first not in state:
        raise UserError(
            f"checkpoint: expected VGG19's weights as torchvision names them in {path}, "
            f"got none of {first}"
        )
    # The deeper layers and the classifier are of no use.
    state = {key: value for key, value in state.items() if key in own}
    check_weights(vgg, state, path)
    vgg.load_state_dict(state)
    return vgg
