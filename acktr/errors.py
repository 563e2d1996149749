"""Errors that people meet, told apart by whose move it is."""


class UserError(Exception):
    """Something the caller can mend: one line: what, why, what to do. Exit code 2."""


class RunError(Exception):
    """The run itself failed (diverged, disk full, environment broke): one line. Exit code 1."""
