"""Pairs of LR and HR images, decoded once into a memory-mapped cache."""

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from .config import DataConfig, OnBadImage
from .errors import Notice, UserError
from .images import BadImageError, bicubic_downscale, crop_to_multiple, read_image
from .listing import NOTHING_APART, summarize
from .pairing import PairFiles, find_pairs

# Part of the cache's key: raise it when the pixels that are stored change.
RECIPE = "matlab-bicubic-2"
# What reading a cache raises that is missing or damaged.
NO_CACHE = (OSError, ValueError, LookupError, TypeError, RecursionError)


class Pair(NamedTuple):
    """An LR image [h, w, 3] and its HR image [scale h, scale w, 3], both uint8.

    The name is the HR image's path below its folder, without suffix.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray


class Pairs(list[Pair]):
    """Pairs, and how many files beside theirs were left out for which reason."""

    def __init__(self, pairs: Iterable[Pair] = (), left_out: Counter[str] | None = None) -> None:
        super().__init__(pairs)
        self.left_out = left_out or Counter()

    def summary(self, role: str) -> str:
        """One line: how many images are used as what, and what was left out."""
        return summarize(role, len(self), self.left_out)


def read_pairs(
    hr_folders: Sequence[Path],
    lr_folders: Sequence[Path],
    scale: int,
    on_bad_image: OnBadImage = "refuse",
) -> Iterator[Pair]:
    """Find pairs, as of :func:`find_pairs`, and decode them, as of :func:`decode_pairs`."""
    yield from decode_pairs(find_pairs(hr_folders, lr_folders, scale).files, scale, on_bad_image)


def decode_pairs(
    files: Sequence[PairFiles], scale: int, on_bad_image: OnBadImage = "refuse"
) -> Iterator[Pair]:
    """Decode pairs one after the other, LR images made by MATLAB's bicubic if not given.

    Raises:
        BadImageError: for a bad image, or sizes that do not fit, under ``"refuse"``; ``"skip"``
            warns and goes on.
    """
    for file in files:
        try:
            yield _decode_pair(file, scale)
        except BadImageError as error:
            if on_bad_image == "refuse":
                raise
            warnings.warn(f"{error}; skipped", Notice, stacklevel=2)


def _decode_pair(file: PairFiles, scale: int) -> Pair:
    hr = crop_to_multiple(read_image(file.hr), scale)
    if hr.size == 0:
        raise BadImageError(f"data: {file.hr}: expected at least {scale}x{scale} pixels, got fewer")
    if file.lr is None:
        return Pair(file.name, bicubic_downscale(hr, scale), hr)
    lr = read_image(file.lr)
    if tuple(size * scale for size in lr.shape[:2]) != hr.shape[:2]:
        expected = "x".join(str(size // scale) for size in hr.shape[:2])
        got = "x".join(str(size) for size in lr.shape[:2])
        raise BadImageError(f"data: {file.lr}: expected {expected} pixels (h x w), got {got}")
    return Pair(file.name, lr, hr)


def load_training_pairs(data: DataConfig, scale: int, output: Path | None = None) -> Pairs:
    """The training images as views of the cache.

    Args:
        data: the configured folders.
        scale: HR pixels per LR pixel.
        output: the run's folder, whose files are no data.

    Raises:
        UserError: as of :func:`find_pairs` and :func:`decode_pairs`, and if an image is smaller
            than a patch under ``on_bad_image: refuse``, or if none is left.
    """
    if not data.train:
        raise UserError("config: data.train: expected a folder of HR images, got none")
    loaded = load_cached(data.train, data.train_lr, scale, data, output)
    pairs = Pairs(left_out=loaded.left_out)
    for pair in loaded:
        if min(pair.lr.shape[:2]) >= data.patch_size:
            pairs.append(pair)
            continue
        size = "x".join(str(side) for side in pair.hr.shape[:2])
        least = data.patch_size * scale
        message = f"data: {pair.name}: expected HR of at least {least}x{least} pixels, got {size}"
        if data.on_bad_image == "refuse":
            raise UserError(message)
        warnings.warn(f"{message}; skipped", Notice, stacklevel=2)
        pairs.left_out["smaller than a patch"] += 1
    if not pairs:
        raise UserError("data: expected at least one usable training image, got none")
    return pairs


def load_cached(
    hr_folders: Sequence[Path],
    lr_folders: Sequence[Path],
    scale: int,
    data: DataConfig,
    output: Path | None = None,
) -> Pairs:
    """All pairs as views of one memory-mapped file, which is written at the first use.

    The file is named by its images' names, paths, sizes and times of change, and by Pillow's
    version: a changed image makes a new cache. It appears complete or not at all. What was said
    while it was made is kept in it and said at each use.
    """
    listing = find_pairs(hr_folders, lr_folders, scale, _roles(data, output))
    folder = data.cache or _default_cache()
    sources = [_fingerprint(file) for file in listing.files]
    identity = [RECIPE, PIL.__version__, scale, data.on_bad_image, sources]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    index_path, pixels_path = folder / f"{key}.json", folder / f"{key}.bin"
    try:
        said, found = _read_cache(index_path, pixels_path)
    except NO_CACHE:
        if index_path.exists():
            text = f"data: expected a whole cache, writing {index_path} again"
            warnings.warn(text, Notice, stacklevel=2)
        pairs = decode_pairs(listing.files, scale, data.on_bad_image)
        try:
            _write_cache(pairs, index_path, pixels_path)
        except OSError as error:
            got = error.strerror or error
            raise UserError(f"data: expected to write the cache {folder}, got {got}") from None
        said, found = _read_cache(index_path, pixels_path)
    for text in said:
        warnings.warn(text, Notice, stacklevel=2)
    if not found:
        raise UserError("data: expected at least one usable image, got none")
    return Pairs(found, listing.left_out + Counter(skipped=len(listing.files) - len(found)))


def _roles(data: DataConfig, output: Path | None) -> Mapping[Path, str]:
    """What each configured folder is for: none of them is a part of another."""
    sets = data.validation_folders.values()
    return {
        **({output: "the output"} if output else NOTHING_APART),
        **({data.cache: "the cache"} if data.cache else NOTHING_APART),
        **dict.fromkeys(data.train, "training images"),
        **dict.fromkeys((path for hr, _ in sets for path in hr), "validation images"),
        **dict.fromkeys((*data.train_lr, *(path for _, lr in sets for path in lr)), "LR images"),
    }


def _fingerprint(file: PairFiles) -> list[Any]:
    return [file.name, *(_stat(path) if path else None for path in (file.hr, file.lr))]


def _stat(path: Path) -> list[Any]:
    real = os.path.realpath(path)
    try:
        result = os.stat(real)
    except OSError:  # reading it will say why
        return [real]
    # The second time also changes when a file becomes readable, or was given its old first time.
    return [real, result.st_size, result.st_mtime_ns, result.st_ctime_ns]


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "clsd-fast"
    except RuntimeError:
        raise UserError("config: data.cache: expected a folder, got none and no home") from None


def _read_cache(index_path: Path, pixels_path: Path) -> tuple[list[str], list[Pair]]:
    """What was said while a cache was made, and its pairs.

    Raises:
        NO_CACHE: if it is not there, or not whole.
    """
    index = json.loads(index_path.read_bytes())
    said = [str(text) for text in index["warnings"]]
    if not index["pairs"]:
        return said, []
    if pixels_path.stat().st_size != index["bytes"]:
        raise ValueError("the pixels are another cache's")
    pixels = np.memmap(pixels_path, dtype=np.uint8, mode="r")
    return said, [_view(pixels, entry) for entry in index["pairs"]]


def _write_cache(pairs: Iterator[Pair], index_path: Path, pixels_path: Path) -> None:
    index_path.parent.mkdir(parents=True, exist_ok=True)
    entries, offset = [], 0
    with (
        tempfile.TemporaryDirectory(dir=index_path.parent) as scratch,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        scratch_pixels, scratch_index = Path(scratch) / "pixels", Path(scratch) / "index"
        with scratch_pixels.open("wb") as file:
            for pair in pairs:
                entry: dict[str, Any] = {"name": pair.name}
                for part, image in (("lr", pair.lr), ("hr", pair.hr)):
                    entry[part] = [offset, *image.shape]
                    file.write(np.ascontiguousarray(image).data)
                    offset += image.size
                entries.append(entry)
        texts = [str(warning.message) for warning in said]
        index = {"bytes": offset, "warnings": texts, "pairs": entries}
        scratch_index.write_text(json.dumps(index))
        # The index goes last: it is what says that the cache is there.
        scratch_pixels.replace(pixels_path)
        scratch_index.replace(index_path)


def _view(pixels: np.ndarray, entry: dict) -> Pair:
    def image(offset: int, *shape: int) -> np.ndarray:
        return pixels[offset : offset + int(np.prod(shape))].reshape(shape)

    return Pair(entry["name"], image(*entry["lr"]), image(*entry["hr"]))
