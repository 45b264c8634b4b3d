"""The command line: what each command takes, in any order."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .errors import UserError
from .paths import expand_input, expand_path

# Suffixes of weights that are read.
WEIGHTS = (".safetensors", ".pt", ".pth")
# LR pixels a side that are upscaled at a time: what bounds the memory.
TILE = 512
# Whose names weights can have, ours first.
NAMINGS = ("edsr-pytorch", "basicsr")


class Parser(argparse.ArgumentParser):
    """Complains by a :class:`UserError`, and takes options before, between and behind the rest."""

    def __init__(self, command: str, **options: Any) -> None:
        self._command = command
        super().__init__(
            prog=f"clsd {command}".strip(),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments; what stands behind ``--`` is no option."""
        words = list(arguments)
        end = words.index("--") if "--" in words else len(words)
        # argparse forgets the -- before it comes to the positionals.
        files = [f"./{word}" if word.startswith("-") else word for word in words[end + 1 :]]
        return self.parse_intermixed_args(words[:end] + files)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._command}: {message}" if self._command else message)


def checked(expand: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of argparse's that complains in the words of a UserError."""

    def parse(text: str) -> Any:
        try:
            return expand(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def positive(text: str) -> float:
    """A positive, finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"expected a positive number, got {text!r}")
    return number


def count(text: str) -> int:
    """A positive integer."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 2**31):
        raise UserError(f"expected a positive integer, got {text!r}")
    return int(text)


def add_checkpoint(parser: Parser, **options: Any) -> None:
    """A checkpoint, and how it is read."""
    parser.add_argument(
        "checkpoint", type=checked(expand_input), help="weights of a student", **options
    )
    parser.add_argument(
        "--res-scale",
        type=checked(positive),
        metavar="FACTOR",
        help="factor of each residual branch; a .pt does not say it: 1, in large EDSRs 0.1",
    )
    parser.add_argument(
        "--value-range",
        type=checked(positive),
        metavar="WHITE",
        help="value of white that the student was trained with: 255 or 1",
    )
    parser.add_argument(
        "--mean-shift",
        action=argparse.BooleanOptionalAction,
        help="whether the mean colour is taken off the image and added again",
    )


def add_upscaling(parser: Parser) -> None:
    """How images are upscaled."""
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="the mean of the images of eight turned and mirrored ones; takes 8 times as long",
    )
    parser.add_argument(
        "--tile",
        type=checked(count),
        default=TILE,
        metavar="PIXELS",
        help=f"LR pixels a side to upscale at a time, {TILE}: less takes less memory and changes "
        "nothing",
    )


def add_target(parser: Parser, name: str, **options: Any) -> None:
    """An option that names what is written."""
    parser.add_argument(name, type=checked(expand_path), metavar="PATH", **options)
