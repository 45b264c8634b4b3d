"""Convolutions of one shape, as operators return them."""

from collections.abc import Sequence

from torch import Tensor

from ...ops._images import empty_images
from .convolve import Convolution, Epilogue, convolve
from .images import dense, finish, writable
from .packing import Parameters, pack


def convolutions(
    xs: Sequence[Tensor],
    parameters: Sequence[Parameters],
    residual: Tensor | None,
    epilogue: Epilogue,
    *,
    upscale: int = 1,
) -> list[Tensor]:
    """The convolution of each images by its parameters.

    Args:
        xs: images [N, C, H, W] of one shape.
        parameters: of each, of one shape.
        residual: added to all, or None.
        epilogue: of all.
        upscale: of a pixel shuffle after each.
    """
    channels = parameters[0].weight.shape[0] // upscale**2
    outputs = [empty_images(x, channels, upscale) for x in xs]
    written = list(map(writable, outputs))
    skip = None if residual is None else dense(residual)
    packed = pack(parameters, xs[0], upscale=upscale)
    tensors = zip(map(dense, xs), written, packed, strict=True)
    convolve([Convolution(*t, skip) for t in tensors], epilogue, output_upscale=upscale)
    return finish(outputs, written)
