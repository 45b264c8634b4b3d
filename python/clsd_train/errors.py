"""What a user can put right."""


class UserError(Exception):
    """Bad input. The command prints the message as one line and exits with 2."""


class Notice(UserWarning):
    """What a user has to know, whatever warnings are switched off. The command prints it."""
