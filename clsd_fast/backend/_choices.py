"""Values of environment variables and of arguments that name one of a few things."""


def one_of(value: str, source: str, *choices: str) -> str:
    """The value, which is one of the choices.

    Raises:
        ValueError: that names the source, if it is not.
    """
    if value not in choices:
        raise ValueError(f"{source}: expected one of {', '.join(choices)}, got {value!r}")
    return value
