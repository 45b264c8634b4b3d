"""Which LR image belongs to which HR image: by the path below their folders."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .errors import UserError
from .listing import NOTHING_APART, ImageFile, list_images

# Words of folder names, between _ and -, by which data sets tell HR from LR: DIV2K_train_HR,
# DIV2K_train_LR_bicubic/X2; GTmod12, LRbicx2, X2_sub (BasicSR); train_sharp_bicubic/X4 (REDS).
HIGH = re.compile(r"hr|gt(mod\d+)?|sharp")
LOW = re.compile(r"lr|lrbicx\d|bicubic")
SCALE = re.compile(r"(?:lrbic)?x(\d)")
# LR images beside HR images: 0001x2.png and 0001.png, img_SRF_2_LR.png and img_SRF_2_HR.png.
SCALED, LR_WORD = re.compile(r"(.+)x[234]", re.DOTALL), re.compile(r"(?<![^_/-])lr(?![^_-])")

Folders = Sequence[Path]


class PairFiles(NamedTuple):
    """Where an HR image and its LR image lie; without LR, it is made from HR."""

    name: str
    hr: Path
    lr: Path | None


class PairListing(NamedTuple):
    """Pairs, and how many entries of the folders were left out for which reason."""

    files: list[PairFiles]
    left_out: Counter[str]


def find_pairs(
    hr_folders: Folders,
    lr_folders: Folders,
    scale: int,
    apart: Mapping[Path, str] = NOTHING_APART,
) -> PairListing:
    """The images of each HR folder with those of the LR folder in the same place of the list.

    Where the lists are not of one length, all LR folders are searched for all HR images. An LR
    image belongs to the HR image of the same path below the folder. Where no HR image has its path,
    folders that state resolution or this scale (``DIV2K_train_HR``, ``X2``) and a final
    ``x<scale>`` of the LR file's name do not count.

    Args:
        hr_folders: folders of HR images. Subfolders that are named as of LR images are left out if
            there are others; without LR folders, so are files that are named as LR of another.
        lr_folders: folders of LR images; none if they are to be made.
        scale: HR pixels per LR pixel.
        apart: folders with other roles, as of :func:`list_images`.

    Raises:
        UserError: for a missing folder, HR without LR, or if two files fit one.
    """
    roles = {
        **apart,
        **dict.fromkeys(hr_folders, "HR images"),
        **dict.fromkeys(lr_folders, "LR images"),
    }
    left_out: Counter[str] = Counter()

    def list_all(folders: Folders) -> list[ImageFile]:
        files = []
        for folder in folders:
            listing = list_images(folder, roles)
            files += listing.files
            left_out.update(listing.left_out)
        return files

    pairs: list[PairFiles] = []
    for hr_group, lr_group in _group(hr_folders, lr_folders):
        listed = list_all(hr_group)
        hr_files = _without_low(listed)
        left_out["in a folder named as of LR images"] += len(listed) - len(hr_files)
        if not lr_group:
            alone = _without_lr_of_others(hr_files)
            left_out["named as LR of another image"] += len(hr_files) - len(alone)
            pairs += [PairFiles(file.name, file.path, None) for file in alone]
            continue
        lr_files = list_all(lr_group)
        matched = _match(hr_files, lr_files, scale, lr_group)
        left_out["LR of another scale or without HR"] += len(lr_files) - len(matched)
        pairs += matched
    return PairListing(pairs, +left_out)


def _group(hr_folders: Folders, lr_folders: Folders) -> list[tuple[Folders, Folders]]:
    """Which folders are searched together: those in one place of the lists if it has two."""
    if not lr_folders:
        return [([folder], []) for folder in hr_folders]
    real = {os.path.realpath(folder) for folder in hr_folders}
    for folder in lr_folders:
        if os.path.realpath(folder) in real:
            raise UserError(f"data: expected LR images in another folder than HR, got {folder}")
    if len(hr_folders) != len(lr_folders):
        return [(hr_folders, lr_folders)]
    return [([hr], [lr]) for hr, lr in zip(hr_folders, lr_folders, strict=True)]


def _match(
    hr_files: list[ImageFile], lr_files: list[ImageFile], scale: int, lr_folders: Folders
) -> list[PairFiles]:
    by_name, by_bare_name = defaultdict(list), defaultdict(list)
    for file in hr_files:
        by_name[file.name].append(file)
        by_bare_name[_bare_name(file.name, scale)].append(file)
    lr_of: dict[Path, ImageFile] = {}
    for lr in lr_files:
        bare_name = _bare_name(lr.name, scale).removesuffix(f"x{scale}")
        fitting = by_name.get(lr.name) or by_bare_name.get(bare_name) or []
        for hr in fitting:
            if len(fitting) > 1:
                _refuse("HR", lr, fitting)
            if hr.path in lr_of:
                _refuse("LR", hr, [lr_of[hr.path], lr])
            lr_of[hr.path] = lr
    for file in hr_files:
        if file.path not in lr_of:
            raise UserError(
                f"data: expected an LR image {file.name} or {file.name}x{scale} for {file.path}, "
                f"got none in {', '.join(map(str, lr_folders))}"
            )
    return [PairFiles(file.name, file.path, lr_of[file.path].path) for file in hr_files]


def _refuse(kind: str, file: ImageFile, fitting: list[ImageFile]) -> None:
    first, second, *_ = fitting
    raise UserError(
        f"data: expected one {kind} image for {file.path}, got {first.path} and {second.path}"
    )


def _bare_name(name: str, scale: int) -> str:
    """The name without the folders that state resolution or this scale."""
    *folders, stem = name.split("/")
    return "/".join([*(f for f in folders if not _states_only(f, scale)), stem])


def _states_only(folder: str, scale: int) -> bool:
    words = _words(folder)
    scales = {match[1] for word in words if (match := SCALE.fullmatch(word))}
    is_high = any(HIGH.fullmatch(word) for word in words)
    return scales <= {str(scale)} and (is_high or _is_low(folder))


def _is_low(folder: str) -> bool:
    words = _words(folder)
    # A scale alone says so only in front: X2, X2_sub, but not bmw-x3.
    return any(LOW.fullmatch(word) for word in words) or bool(SCALE.fullmatch(words[0]))


def _words(folder: str) -> list[str]:
    return re.split("[_-]", folder.lower())


def _without_low(files: list[ImageFile]) -> list[ImageFile]:
    high = [f for f in files if not any(map(_is_low, PurePosixPath(f.name).parts[:-1]))]
    return high or files


def _without_lr_of_others(files: list[ImageFile]) -> list[ImageFile]:
    names = {file.name.lower() for file in files}
    return [file for file in files if not _is_lr_of_other(file.name.lower(), names)]


def _is_lr_of_other(name: str, names: set[str]) -> bool:
    scaled = SCALED.fullmatch(name)
    as_high = LR_WORD.sub("hr", name)
    return (scaled is not None and scaled[1] in names) or (as_high != name and as_high in names)
