"""The image files of a folder: which are used, under which name, and what is left out."""

import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from .errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What systems put beside the files of a person; all else of theirs begins with a dot.
SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")
# How `clsd upscale` names what it makes.
OUTPUT = re.compile(r"(.+)_x[234]", re.DOTALL)
NOTHING_APART: Mapping[Path, str] = MappingProxyType({})
# Reasons that are listed one by one; the rarer ones are added up.
MAX_REASONS = 8


class ImageFile(NamedTuple):
    """A file by its name: the path below the given folder, with ``/`` and without suffix."""

    name: str
    path: Path


class Listing(NamedTuple):
    """Image files, sorted by path, and how many entries were left out for which reason."""

    files: list[ImageFile]
    left_out: Counter[str]


def list_images(folder: Path, apart: Mapping[Path, str] = NOTHING_APART) -> Listing:
    """The image files of a folder and its subfolders, linked ones included.

    Hidden entries, files of other suffixes, the folders of ``apart`` and what ``clsd upscale`` has
    made of another image of the folder are left out and counted. Each folder is read once: links to
    one that is listed, or that leads to the link, are left out.

    Args:
        folder: to begin at; itself never hidden, never apart.
        apart: folders that have another role, and that role, as it is said.

    Raises:
        UserError: if the folder is missing, unreadable or holds no image file.
    """
    check_folder(folder)
    root = os.path.realpath(folder)
    roles = {os.path.realpath(path): role for path, role in apart.items()}
    roles = {real: role for real, role in roles.items() if not _is_within(root, real)}
    files: list[ImageFile] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    # Folders proper come before links to folders, so that what is twice is left out as a link.
    pending = [(False, str(folder))]
    while pending:
        is_link, current = heapq.heappop(pending)
        real = os.path.realpath(current)
        role = next((role for path, role in roles.items() if _is_within(real, path)), None)
        if role:
            left_out[f"folder of {role}"] += 1
        elif real in seen or (is_link and _is_within(os.path.realpath(Path(current).parent), real)):
            left_out["link to a folder that is listed"] += 1
        else:
            seen.add(real)
            for link, subfolder in _read_folder(folder, Path(current), files, left_out):
                heapq.heappush(pending, (link, subfolder))
    if not files:
        reasons = f"; left out: {describe(left_out)}" if left_out else ""
        raise UserError(
            f"data: expected images in {folder} ({', '.join(SUFFIXES)}), got none{reasons}"
        )
    sources = _without_outputs(files)
    left_out["output of clsd upscale"] += len(files) - len(sources)
    return Listing(sorted(sources, key=lambda file: file.path), +left_out)


def _read_folder(
    root: Path, folder: Path, files: list[ImageFile], left_out: Counter[str]
) -> list[tuple[bool, str]]:
    """Add the entries of one folder to what is found; returns its subfolders."""
    subfolders = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"data: expected a readable folder, got {folder}: {error.strerror}"
        ) from None
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
            left_out["hidden"] += 1
        elif entry.is_dir(follow_symlinks=False) or os.path.isdir(path):
            subfolders.append((entry.is_symlink(), str(path)))
        elif suffix in SUFFIXES:
            files.append(ImageFile(path.relative_to(root).with_suffix("").as_posix(), path))
        elif not os.path.exists(path):  # perhaps a folder on a disk that is not there
            left_out["link to nothing"] += 1
        else:
            left_out[suffix or "without suffix"] += 1
    return subfolders


def _without_outputs(files: list[ImageFile]) -> list[ImageFile]:
    names = {file.name for file in files}
    return [file for file in files if not _is_output(file.name, names)]


def _is_output(name: str, names: set[str]) -> bool:
    """Whether this is NAME_x<scale> of another name, perhaps in an output folder in front."""
    match = OUTPUT.fullmatch(name)
    parts = match[1].split("/") if match else []
    return any("/".join(parts[start:]) in names for start in range(len(parts)))


def _is_within(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def check_folder(folder: Path) -> None:
    """Refuse what is no folder, and say what it is.

    Raises:
        UserError: if there is none, or something else of that name.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, ValueError):  # a name with a zero byte names nothing
        got = "no such folder"
    except OSError as error:
        got = str(error.strerror)
    else:
        if is_folder:
            return
        got = "a file"
    raise UserError(f"data: expected a folder of images, got {folder}: {got}")


def describe(left_out: Counter[str]) -> str:
    """Reasons and their counts, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[MAX_REASONS:])
    shown = ordered[:MAX_REASONS] + ([("other", rest)] if rest else [])
    return ", ".join(f"{reason} {count}" for reason, count in shown)


def summarize(role: str, used: int, left_out: Counter[str]) -> str:
    """The line that says what a folder's files became."""
    line = f"{role}: {used} {'image' if used == 1 else 'images'} used"
    return f"{line}; left out: {describe(left_out)}" if left_out else line
