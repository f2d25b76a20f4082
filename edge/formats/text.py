"""Text from outside: files, stdin, arguments. All of it is UTF-8 or an error in one sentence."""

from __future__ import annotations

from pathlib import Path

from edge.errors import EdgeError

# More than any context holds: a file that is longer was named by mistake, and is not even read.
LARGEST_BYTES = 64_000_000


def read_text(path: Path) -> str:
    """A text file's content, line ends as they are.

    Raises:
        EdgeError: it cannot be read, is too long, or is no text.
    """
    try:
        if path.exists() and not path.is_file():
            raise EdgeError(f"{path} is no file; name one.")
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise EdgeError(f"{path} has {size / 1e6:.0f} MB; give a part of it.")
        return decode_text(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise EdgeError(f"{path} is not there; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise EdgeError(f"{path} cannot be read ({reason}); check its permissions.") from None


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte order mark.

    Args:
        data: the bytes.
        where: what they are of, for the error.

    Raises:
        EdgeError: they are no text.
    """
    if b"\0" in data:
        raise EdgeError(f"{where} is binary; only text can be used.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgeError(
            f"{where} is no UTF-8 at byte {error.start}; save it in that encoding first."
        ) from None


def check_argument(text: str, flag: str) -> str:
    """An argument's text; bytes that are no UTF-8 come from the system as surrogates.

    Raises:
        EdgeError: it has some.
    """
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise EdgeError(f"{flag} is no UTF-8; pass the text through a file or stdin.")
    return text
