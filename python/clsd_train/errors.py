"""What a user can put right, and how it is said."""

import os
import reprlib
import sys
import warnings


class UserError(Exception):
    """Bad input. The command prints the message as one line and exits with 2."""


class SharedError(UserError):
    """What all ranks of a run come to at once: the first of them says it."""


class Notice(UserWarning):
    """What a user has to know, whatever warnings are switched off. The command prints it."""


def one_line(text: str) -> str:
    """The text with everything escaped that would break or colour a line, lone surrogates too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_first() -> bool:
    """Whether this process is the one that speaks, of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str, everyone: bool = False) -> None:
    """Print a line of the command's on stderr; of several ranks the first does, or everyone."""
    if everyone or is_first():
        print(f"clsd: {one_line(text)}", file=sys.stderr)


def tell_notices() -> None:
    """Have each :class:`Notice` of this process told, and no warning of files that Pillow has."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they are refused or read anyway
    warnings.filterwarnings("always", category=Notice)
    warnings.showwarning = lambda message, *_: tell(f"warning: {message}")


def shorten(value: object, length: int = 80) -> str:
    """How a value is quoted in a message: its repr, cut to a length."""
    # A container may share its parts and be far larger in print than in memory.
    text = repr(value) if not isinstance(value, (list, tuple, dict)) else _outline(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _outline(value: list | tuple | dict) -> str:
    outline = reprlib.Repr()
    outline.maxlevel, outline.maxstring, outline.maxlong = 2, 60, 60
    return outline.repr(value)
