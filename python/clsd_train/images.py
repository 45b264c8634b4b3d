"""Images of files, MATLAB's bicubic resizing, and images as tensors."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from .errors import Notice, UserError
from .listing import list_images

# What Pillow may read, by its own names: in others it drops bits and frames that we do not look at.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# Tags of TIFF, and a value of the last.
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT, UNSIGNED = 258, 277, 339, 1


class BadImageError(UserError):
    """A file that holds no usable image."""


class Picture(NamedTuple):
    """uint8 [H, W, C] (grey, grey and alpha, RGB, RGBA), and the ICC profile of the colours."""

    pixels: np.ndarray
    icc_profile: bytes | None = None


def find_images(folders: Sequence[Path]) -> list[Path]:
    """The image files of folders and their subfolders, as of :func:`list_images`."""
    return [file.path for folder in folders for file in list_images(folder).files]


def read_image(path: Path) -> np.ndarray:
    """An image as RGB uint8 [H, W, 3]; grey is repeated, an opaque alpha is dropped.

    Raises:
        BadImageError: as of :func:`read_picture`, and if a pixel is transparent.
    """
    pixels = read_picture(path).pixels
    channels = pixels.shape[2]
    if channels in (2, 4) and pixels[..., -1].min() < 255:
        raise BadImageError(f"data: {path}: expected an opaque image, got transparency")
    return to_rgb(pixels)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] of a picture to RGB [H, W, 3], without alpha."""
    return pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, axis=2)


def read_picture(path: Path) -> Picture:
    """An 8-bit image, turned upright as its EXIF orientation says.

    Transparency of a palette or of one colour becomes alpha. Warns by :class:`Notice` of
    damaged metadata and of further pictures in a JPEG file (MPO), which are left out.

    Raises:
        BadImageError: if the file is missing, unreadable, broken, no BMP, JPEG, PNG, TIFF or WebP,
            not 8-bit grey or RGB, or holds several pages or frames.
    """
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        # Up to twice this number of pixels Pillow reads, and we do; beyond, it raises.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = _decode(path)
        except BadImageError:
            raise
        except Exception as error:  # decoders raise whatever broken bytes lead them to
            got = _describe_failure(path, error)
            raise BadImageError(f"data: {path}: expected an image, got {got}") from None
    for text in dict.fromkeys(str(remark.message) for remark in remarks):
        warnings.warn(f"data: {path}: {text}", Notice, stacklevel=2)
    return picture


def _decode(path: Path) -> Picture:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
        raise BadImageError(f"data: {path}: expected an image, got no regular file")
    with Image.open(path, formats=FORMATS) as image:
        _check_frames(path, image)
        _check_depth(path, image)
        with _raise_libtiff_errors() if image.format == "TIFF" else nullcontext():
            image.load()
        _turn_upright(image)
        return Picture(_to_pixels(path, image), image.info.get("icc_profile"))


@contextmanager
def _raise_libtiff_errors() -> Iterator[None]:
    """Raise what libtiff writes to stderr, after which it may go on with wrong pixels."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)  # of very many words the last are lost, and nothing waits
    os.dup2(writer, 2)
    failure = None
    try:
        yield
    except OSError as error:  # "decoder error -2": libtiff knows more
        failure = error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(writer)
        said = os.read(reader, 4096).decode(errors="replace").splitlines()
        os.close(reader)
    if said:
        raise OSError(said[0])
    if failure:
        raise failure


def _turn_upright(image: Image.Image) -> None:
    try:
        image.getexif()
    except Exception as error:  # Pillow's parsers raise whatever broken bytes lead them to
        warnings.warn(f"EXIF that cannot be read, and so no orientation: {error}", stacklevel=2)
    else:
        ImageOps.exif_transpose(image, in_place=True)


def _check_frames(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":  # a photograph, then previews or views of it
        if frames > 1:
            warnings.warn(f"{frames - 1} of the {frames} pictures in it left out", stacklevel=2)
    elif frames > 1:
        raise BadImageError(f"data: {path}: expected one picture, got {frames} pages or frames")


def _check_depth(path: Path, image: Image.Image) -> None:
    bits, kind = 8, UNSIGNED
    if image.format == "PNG":
        with path.open("rb") as file:
            bits = file.read(25)[24]  # of IHDR, which is the first chunk
    elif isinstance(image, TiffImageFile):
        samples, bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), len(image.getbands())
        if samples != bands:
            raise BadImageError(
                f"data: {path}: expected 8-bit grey or RGB, "
                f"got {samples} channels, of which Pillow reads {bands}"
            )
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
        kind = max(image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,)))
    if bits > 8 or kind != UNSIGNED:
        signed = "" if kind == UNSIGNED else "signed or floating "
        raise BadImageError(
            f"data: {path}: expected 8-bit grey or RGB, "
            f"got mode {image.mode} of {signed}{bits} bits per channel"
        )


def _to_pixels(path: Path, image: Image.Image) -> np.ndarray:
    has_key = "transparency" in image.info
    mode = {
        "1": "LA" if has_key else "L",
        "L": "LA" if has_key else "L",
        "LA": "LA",
        "P": "RGBA" if has_key else "RGB",
        "PA": "RGBA",
        "RGB": "RGBA" if has_key else "RGB",
        "RGBA": "RGBA",
    }.get(image.mode)
    if mode is None:
        raise BadImageError(f"data: {path}: expected 8-bit grey or RGB, got mode {image.mode}")
    pixels = np.asarray(image.convert(mode))
    if pixels.size == 0:
        raise BadImageError(f"data: {path}: expected an image, got one of no pixels")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _describe_failure(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to nothing" if path.is_symlink() else "no such file"
    if isinstance(error, UnidentifiedImageError):
        return _describe_unknown(path)
    if isinstance(error, Image.DecompressionBombError):
        return "one of more pixels than Pillow opens"
    if isinstance(error, MemoryError):
        return "one that is too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return f"a file that cannot be read ({error.strerror})"
    return f"a broken one ({' '.join(str(error).split()) or type(error).__name__})"


def _describe_unknown(path: Path) -> str:
    """What a file is that Pillow takes for none of the formats, though it may begin as one."""
    with path.open("rb") as file:
        start = file.read(16)
        if not start:
            return "an empty file"
        for name in FORMATS:
            open_format, accepts = Image.OPEN[name]
            if accepts and accepts(start) is True:
                try:
                    file.seek(0)
                    open_format(file, "")
                except Exception as error:  # the reason, which Image.open keeps to itself
                    reason = " ".join(str(error).split())
                    return f"a {name} file that Pillow cannot read ({reason})"
    return "a file that is no BMP, JPEG, PNG, TIFF or WebP image"


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
