"""The one exception for mistakes a user can mend: `main.py` prints its message as a single line."""


class UserError(Exception):
    """A mistake in flags, configuration or files: what was expected, what came, and what to do."""
