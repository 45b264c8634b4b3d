"""Image files, MATLAB's bicubic resizing, and images as tensors."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from .errors import UserError
from .paths import what_is_at

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class BadImageError(UserError):
    """A file that holds no usable image."""


def find_images(folders: Sequence[Path]) -> list[Path]:
    """The image files of folders and their subfolders, sorted.

    Raises:
        UserError: if a folder is missing or holds no image file.
    """
    files = []
    for folder in folders:
        if not folder.is_dir():
            got = what_is_at(folder, "folder")
            raise UserError(f"data: expected a folder of images, got {folder}: {got}")
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"data: expected images in {folder}, got none")
        files += found
    return files


def read_image(path: Path) -> np.ndarray:
    """An 8-bit image as RGB uint8 [H, W, 3]; grey is repeated, an opaque alpha is dropped.

    Raises:
        BadImageError: if the file is missing, truncated, no image, transparent or not 8-bit.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(path, image)
    except UnidentifiedImageError:
        got = "a file that is no image"
    except FileNotFoundError:
        got = "no such file"
    except Image.DecompressionBombError:
        got = "one of more pixels than Pillow opens"
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on broken data
        got = f"a broken one ({' '.join(str(error).split())})"
    raise BadImageError(f"data: {path}: expected an image, got {got}")


def _to_rgb(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA"):
        if np.asarray(image.getchannel("A")).min() < 255:
            raise BadImageError(f"data: {path}: expected an opaque image, got transparency")
        image = image.convert("RGB")
    if image.mode not in ("RGB", "L", "1"):
        raise BadImageError(f"data: {path}: expected 8-bit grey or RGB, got mode {image.mode}")
    return np.asarray(image.convert("RGB"))


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The top left part of [H, W, 3] whose sides are multiples of scale."""
    height, width = (size - size % scale for size in image.shape[:2])
    return image[:height, :width]


def bicubic_downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [H, W, 3] to [H / scale, W / scale, 3], every pixel as MATLAB's ``imresize``."""
    return _bicubic(image, lambda size: size // scale, pad=4 * scale)


def bicubic_upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [H, W, 3] to [scale H, scale W, 3], as MATLAB's ``imresize``."""
    return _bicubic(image, lambda size: size * scale, pad=4)


def _bicubic(image: np.ndarray, resized: Callable[[int], int], pad: int) -> np.ndarray:
    # MATLAB resizes one dimension after the other, vertically first, rounds to uint8 after each,
    # and mirrors the border. With antialias PyTorch's cubic has MATLAB's coefficient (-0.5).
    pixels = image.transpose(2, 0, 1).astype(np.float64)
    for _ in range(2):
        mirrored = np.pad(pixels, ((0, 0), (pad, pad), (0, 0)), "symmetric")
        size = (resized(mirrored.shape[1]), mirrored.shape[2])
        out = F.interpolate(
            torch.from_numpy(mirrored)[None], size=size, mode="bicubic", antialias=True
        )[0].numpy()
        border = resized(pad)
        out = np.floor(out[:, border : out.shape[1] - border] + 0.5).clip(0, 255)
        pixels = out.transpose(0, 2, 1)
    return pixels.transpose(1, 2, 0).astype(np.uint8)


def images_to_tensor(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in 0..255, channels_last."""
    # The copy also serves read-only images (the cache's), which torch would warn of.
    return torch.tensor(images).to(device).permute(0, 3, 1, 2).float()
