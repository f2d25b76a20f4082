"""What of a model's or a file's text arrives on a terminal, and in a pipe."""

import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UNSAFE, printable
from edge.stdout import TerminalText
from edge.text import plain
from edge.tokenizer.detokenizer import BYTE_OF
from tests.cli.test_cli import ENVIRONMENT
from tests.support.terminal import Terminal

# Escape sequences over several pieces, both kinds of controls, direction marks, hidden characters.
HOSTILE = ["\x1b]52;", "c;aGk=\x07", "\x9b3", "1mé\r", "\n\t", "\u202e\u2066\u200b",
           "\u200da\u200d", "e\u0301👩", "\u200d💻", "\x1b", "[2J", "\u3000漢"]  # fmt: skip
SHOWN = ("\\x1b]52;c;aGk=\\x07\\x9b31mé\n\t\\u202e\\u2066\\u200b\\u200da\\u200d"
         "e\u0301👩\u200d💻\\x1b[2J\u3000漢")  # fmt: skip


@given(st.lists(st.sampled_from([*HOSTILE, "\r", "\n", "a", "é", "\u200c", "\ud800"]), max_size=12))
def test_escapes_do_not_depend_on_the_pieces(pieces):
    apart, joined = TerminalText(), TerminalText().add("".join(pieces))
    assert "".join(map(apart.add, pieces)) == joined
    assert not UNSAFE.search(joined) and "\r" not in joined


def test_text_in_messages_and_tables_is_one_line():
    text = "".join(HOSTILE)
    assert printable(text) == SHOWN.replace("é\n\t", "é\\r\\n\\t")
    assert plain("a\x1b\n\tb 👩\u200d💻") == "a\ufffd b 👩\u200d💻"


@pytest.fixture
def hostile(demo_out, tmp_path):
    """The demo with other names of its tokens, so that it says HOSTILE."""
    source, folder = demo_out / "mlx-fp16", tmp_path / "hostile"
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    names, letter_of = tokenizer["model"]["vocab"], {byte: c for c, byte in BYTE_OF.items()}
    kept = {*letter_of.values(), *(token["content"] for token in tokenizer["added_tokens"])}
    for name in set(names) - kept:
        token_id = names.pop(name)
        data = f"{token_id}{HOSTILE[token_id % len(HOSTILE)]}".encode()
        names["".join(letter_of[byte] for byte in data)] = token_id
    tokenizer["model"]["merges"] = []
    file.write_text(json.dumps(tokenizer))
    return folder


SAMPLED = ("-n", "60", "--temperature", "9", "--top-p", "1", "--seed", "2")


@pytest.mark.parametrize(
    "words",
    [
        ("complete", "--prefix", "import ", "--no-stop-rules", *SAMPLED, "--model", "hostile"),
        ("chat", "-q", "hostile", "-p", "x", *SAMPLED),
        ("convert", "demo", "--to", "mlx-fp16", "--out", "out\x1b]0;t\x07\u202e\x9b"),
    ],
)
def test_a_terminal_gets_escapes_and_a_pipe_the_exact_bytes(hostile, tmp_path, words):
    command = [sys.executable, "-m", "edge", *words]
    run = lambda *more: subprocess.run(  # noqa: E731
        [*command, *more], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
        stdin=subprocess.DEVNULL, check=True,
    ).stdout  # fmt: skip
    piped = run()
    if words[0] != "convert":
        assert piped.rstrip(b"\n") == json.loads(run("-o", "json"))["text"].rstrip("\n").encode()
    assert UNSAFE.search(piped.decode()) and b"\x1b]" in piped
    terminal = Terminal(command, tmp_path, ENVIRONMENT)
    try:
        assert terminal.leave("") == 0
    finally:
        terminal.close()
    shown = terminal.output.decode().replace("\r\n", "\n")
    assert shown.endswith(TerminalText().add(piped.decode()).replace("made", "kept"))
