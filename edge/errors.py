"""The error type for users, and text that is safe in messages."""

import sys
from importlib.util import find_spec
from pathlib import Path

# Limits of a message, which may quote a file: its beginning says what is wrong and where, its end
# what to do.
HEAD_CHARACTERS, TAIL_CHARACTERS = 1000, 300


class EdgeError(Exception):
    """An error that the user can correct; commands print it without a traceback and exit with 1.

    The message is one sentence: what is wrong, where, what to do. It may quote untrusted files:
    control characters are escaped, and the middle of a very long message is left out.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """Text on one line, control characters escaped, shortened in the middle."""
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        text = f"{text[:HEAD_CHARACTERS]} ... {text[-TAIL_CHARACTERS:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def install_command(package: str) -> str:
    """Command that installs a package here; without folders, as profiles are shared."""
    pip = f"{Path(sys.executable).name} -m pip" if find_spec("pip") is not None else "uv pip"
    return f"{pip} install {package}"
