"""A trained student on whole images."""

import numpy as np
import torch

from clsd_fast import EDSR

from .images import images_to_tensor

TILE = 512


def receptive_radius(student: EDSR) -> int:
    """LR pixels that an output pixel depends on, to each side."""
    # Head, two per block, end of the body, one or two stages of the upsampler, last convolution.
    return 2 * student.num_blocks + 5


@torch.inference_mode()
def upscale(student: EDSR, image: np.ndarray, tile: int = TILE) -> np.ndarray:
    """uint8 RGB [h, w, 3] to uint8 [scale h, scale w, 3].

    Larger images go in tiles with a border of the receptive field, which bounds the memory and
    changes nothing: at a tile's seam the network sees what it sees in the whole image.
    """
    height, width = image.shape[:2]
    scale, border = student.scale, receptive_radius(student)
    output = np.empty((scale * height, scale * width, 3), np.uint8)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y0, x0 = max(top - border, 0), max(left - border, 0)
            part = image[y0 : top + tile + border, x0 : left + tile + border]
            sr = _forward(student, part)
            rows, columns = min(tile, height - top), min(tile, width - left)
            y, x = scale * (top - y0), scale * (left - x0)
            output[scale * top : scale * (top + rows), scale * left : scale * (left + columns)] = (
                sr[y : y + scale * rows, x : x + scale * columns]
            )
    return output


def _forward(student: EDSR, image: np.ndarray) -> np.ndarray:
    parameter = next(student.parameters())
    lr = images_to_tensor(image[None], parameter.device) * (student.value_range / 255)
    sr = student(lr)[0] * (255 / student.value_range)
    return sr.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
