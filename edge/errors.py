"""The error type for users, and untrusted text made safe for terminals and messages."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

# Limits of a message, which may quote a file: its beginning says what is wrong and where, its end
# what to do.
HEAD_CHARACTERS, TAIL_CHARACTERS = 1000, 300
# What a terminal acts on, reorders (CVE-2021-42574) or hides: controls but tab and newline,
# direction marks, line separators, zero-width characters, tags, and lone surrogates. A joiner may
# stand after a letter of another script or an emoji.
JOINERS = "\u200c\u200d"
_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
UNSAFE = re.compile(f"[{_CONTROLS}]|(?:^|(?<=[\t\n -~{_CONTROLS}{JOINERS}]))[{JOINERS}]")


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
    return with_escapes(text).replace("\n", "\\n").replace("\t", "\\t")


def with_escapes(text: str) -> str:
    """Text of any number of lines with escapes in place of characters unsafe on a terminal."""
    return UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)


def install_command(package: str) -> str:
    """Command that installs a package here; without folders, as profiles are shared."""
    if Path(sys.prefix, "pipx_metadata.json").exists():
        pip = "pipx runpip stable-edge install"
    elif Path(sys.prefix, "uv-receipt.toml").exists():
        pip = 'uv pip install --python "$(uv tool dir)/stable-edge"'
    elif find_spec("pip") is not None:
        pip = f"{Path(sys.executable).name} -m pip install"
    else:  # without uv on the PATH, `make setup` fetched it
        pip = f"{'uv' if which('uv') else '.tools/bin/uv'} pip install"
    return f"{pip} {package}"
