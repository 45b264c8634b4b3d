"""What a user can put right."""


class UserError(Exception):
    """Bad input. The command prints the message as one line and exits with 2."""
