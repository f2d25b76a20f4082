"""The one exception whose message is written for the person at the terminal."""


class EdgeError(Exception):
    """Something the user can mend.

    The message is one sentence that says what is wrong, where, and what to do.
    Commands print it without a traceback and exit with 1.
    """
