"""The settings of a command line, and those of a run that goes on."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .config import Config, flatten, is_key, load_config
from .errors import UserError, shorten
from .paths import expand_input
from .preset import PRESETS
from .yaml_text import dump_scalar


def read_settings(settings: Sequence[str], saved: Config | None = None) -> Config:
    """The configuration of a YAML file or preset and overrides ``a.b=value``, in any order.

    Args:
        settings: of the command line.
        saved: the settings of a run that goes on, which hold where the others say nothing.

    Raises:
        UserError: for two files, what is neither, and as of
            :func:`~clsd_train.config.load_config`.
    """
    return load_config(*_split(settings), saved)


@cache
def describe_settings() -> str:
    """Every key with its default and its meaning, for people."""
    lines = ["settings, with their defaults:"]
    sections = set(Config().model_dump()) - set(flatten(Config()))
    for key, value, meaning in Config().settings():
        if key in sections:
            lines += ["", f"  {meaning}"]
        else:
            lines.append(f"  {key}={dump_scalar(value)}".ljust(36) + f" {meaning}")
    return "\n".join(lines)


def _split(settings: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The YAML file, if there is one, and the overrides.

    A preset's name is the preset, whatever files there are: ``./quick`` is a file.
    """
    overrides = [setting for setting in settings if _is_override(setting)]
    files = [setting for setting in settings if not _is_override(setting)]
    if len(files) > 1:
        got = " and ".join(map(shorten, files[:2]))
        raise UserError(f"config: expected one YAML file or preset, got {got}")
    if not files:
        return None, overrides
    if files[0] in PRESETS:
        return PRESETS[files[0]], overrides
    try:
        path = expand_input(files[0])
    except UserError as error:
        raise UserError(f"config: {error}") from None
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"config: expected a YAML file, a preset ({', '.join(PRESETS)}) or an override "
            f"key=value, got {shorten(files[0])}"
        )
    return path, overrides


def _is_override(setting: str) -> bool:
    """Whether it is no file: a path may have a ``=`` in it."""
    key, equals, value = setting.partition("=")
    if not equals or os.path.isfile(os.path.expanduser(setting)):
        return False
    return is_key(key) or not value.endswith((".yaml", ".yml"))
