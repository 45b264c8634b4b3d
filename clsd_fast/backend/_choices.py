"""Values of environment variables and of arguments that name one of a few things."""

import os


def one_of(value: str, source: str, *choices: str) -> str:
    """The value, which is one of the choices.

    Raises:
        ValueError: that names the source, if it is not.
    """
    if value not in choices:
        raise ValueError(f"{source}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def of_environment(name: str, *choices: str) -> str:
    """The value of an environment variable; the first choice where it is empty or not set.

    Raises:
        ValueError: if it is none of the choices.
    """
    return one_of(os.environ.get(name) or choices[0], name, *choices)
