"""Pairs of LR and HR images, decoded once into a memory-mapped cache."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .config import DataConfig, OnBadImage
from .errors import UserError
from .images import BadImageError, bicubic_downscale, crop_to_multiple, find_images, read_image

# Part of the cache's key: raise it when the pixels that are stored change.
RECIPE = "matlab-bicubic-1"


class Pair(NamedTuple):
    """An LR image [h, w, 3] and its HR image [scale h, scale w, 3], both uint8."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


def read_pairs(
    hr_folders: Sequence[Path],
    lr_folders: Sequence[Path],
    scale: int,
    on_bad_image: OnBadImage = "refuse",
) -> Iterator[Pair]:
    """Decode pairs one after the other, LR images made by MATLAB's bicubic if not given.

    An LR file belongs to the HR file of the same stem, or of that stem and ``x<scale>``.

    Raises:
        UserError: for a missing folder, HR without LR, sizes that do not fit.
        BadImageError: for a bad image under ``"refuse"``; ``"skip"`` warns and goes on.
    """
    for hr_path, lr_path in _match(find_images(hr_folders), lr_folders, scale):
        try:
            yield _read_pair(hr_path, lr_path, scale)
        except BadImageError as error:
            if on_bad_image == "refuse":
                raise
            warnings.warn(f"{error}; skipped", stacklevel=2)


def _match(
    hr_paths: list[Path], lr_folders: Sequence[Path], scale: int
) -> list[tuple[Path, Path | None]]:
    if not lr_folders:
        return [(path, None) for path in hr_paths]
    lr_by_stem = {path.stem: path for path in find_images(lr_folders)}
    matched: list[tuple[Path, Path | None]] = []
    for path in hr_paths:
        lr_path = lr_by_stem.get(path.stem) or lr_by_stem.get(f"{path.stem}x{scale}")
        if lr_path is None:
            raise UserError(
                f"data: expected an LR image {path.stem} or {path.stem}x{scale} for {path}, "
                f"got none in {', '.join(str(folder) for folder in lr_folders)}"
            )
        matched.append((path, lr_path))
    return matched


def _read_pair(hr_path: Path, lr_path: Path | None, scale: int) -> Pair:
    hr = crop_to_multiple(read_image(hr_path), scale)
    if hr.size == 0:
        raise BadImageError(f"data: {hr_path}: expected at least {scale}x{scale} pixels, got fewer")
    if lr_path is None:
        return Pair(hr_path.stem, bicubic_downscale(hr, scale), hr)
    lr = read_image(lr_path)
    if tuple(size * scale for size in lr.shape[:2]) != hr.shape[:2]:
        expected = "x".join(str(size // scale) for size in hr.shape[:2])
        got = "x".join(str(size) for size in lr.shape[:2])
        raise BadImageError(f"data: {lr_path}: expected {expected} pixels (h x w), got {got}")
    return Pair(hr_path.stem, lr, hr)


def load_training_pairs(data: DataConfig, scale: int) -> list[Pair]:
    """The training images as views of the cache.

    Raises:
        UserError: as of :func:`read_pairs`, and if an image is smaller than a patch under
            ``on_bad_image: refuse``, or if none is left.
    """
    if not data.train:
        raise UserError("config: data.train: expected a folder of HR images, got none")
    pairs = []
    for pair in load_cached(data.train, data.train_lr, scale, data):
        if min(pair.lr.shape[:2]) >= data.patch_size:
            pairs.append(pair)
            continue
        size = "x".join(str(side) for side in pair.hr.shape[:2])
        least = data.patch_size * scale
        message = f"data: {pair.name}: expected HR of at least {least}x{least} pixels, got {size}"
        if data.on_bad_image == "refuse":
            raise UserError(message)
        warnings.warn(f"{message}; skipped", stacklevel=2)
    if not pairs:
        raise UserError("data: expected at least one usable training image, got none")
    return pairs


def load_cached(
    hr_folders: Sequence[Path], lr_folders: Sequence[Path], scale: int, data: DataConfig
) -> list[Pair]:
    """All pairs as views of one memory-mapped file, which is written at the first use.

    The file is named by its sources' paths, sizes and times of change: a changed source makes a
    new cache. It appears complete or not at all; one that is damaged is written again.
    """
    sources = [_fingerprint(folders) for folders in (hr_folders, lr_folders)]
    identity = [RECIPE, scale, data.on_bad_image, sources]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = data.cache or _default_cache()
    index_path, pixels_path = folder / f"{key}.json", folder / f"{key}.bin"
    cached = _read_cache(index_path, pixels_path, scale)
    if cached is None:
        pairs = read_pairs(hr_folders, lr_folders, scale, data.on_bad_image)
        try:
            _write_cache(pairs, index_path, pixels_path)
        except OSError as error:
            got = error.strerror or error
            raise UserError(f"data: expected to write the cache {folder}, got {got}") from None
        cached = _read_cache(index_path, pixels_path, scale)
    if not cached:
        raise UserError("data: expected at least one usable image, got none")
    return cached


def _read_cache(index_path: Path, pixels_path: Path, scale: int) -> list[Pair] | None:
    """The pairs of a cache; None if there is none, or a damaged one."""
    if not index_path.exists():
        return None
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        if index == []:
            return []
        pixels = np.memmap(pixels_path, dtype=np.uint8, mode="r")
        pairs = [_view(pixels, entry) for entry in index]
        if all(tuple(scale * s for s in p.lr.shape[:2]) == p.hr.shape[:2] for p in pairs):
            return pairs
    # What a damaged index may lead to; UnicodeDecodeError is a ValueError.
    except (FileNotFoundError, ValueError, TypeError, LookupError, RecursionError):
        pass
    warnings.warn(f"data: expected a whole cache, writing {index_path} again", stacklevel=2)
    return None


def _fingerprint(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    stats = [(str(path.resolve()), path.stat()) for path in find_images(folders)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "clsd-fast"


def _write_cache(pairs: Iterator[Pair], index_path: Path, pixels_path: Path) -> None:
    index_path.parent.mkdir(parents=True, exist_ok=True)
    index, offset = [], 0
    with tempfile.TemporaryDirectory(dir=index_path.parent) as scratch:
        scratch_pixels, scratch_index = Path(scratch) / "pixels", Path(scratch) / "index"
        with scratch_pixels.open("wb") as file:
            for pair in pairs:
                entry: dict[str, Any] = {"name": pair.name}
                for part, image in (("lr", pair.lr), ("hr", pair.hr)):
                    entry[part] = [offset, *image.shape]
                    file.write(np.ascontiguousarray(image).data)
                    offset += image.size
                index.append(entry)
        scratch_index.write_text(json.dumps(index), encoding="utf-8")
        # The index goes last: it is what says that the cache is there.
        scratch_pixels.replace(pixels_path)
        scratch_index.replace(index_path)


def _view(pixels: np.ndarray, entry: dict) -> Pair:
    def image(offset: int, *shape: int) -> np.ndarray:
        return pixels[offset : offset + int(np.prod(shape))].reshape(shape)

    return Pair(entry["name"], image(*entry["lr"]), image(*entry["hr"]))
