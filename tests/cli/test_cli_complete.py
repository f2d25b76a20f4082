"""`edge complete` as a user or an editor calls it."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli.main import main
from edge.errors import EdgeError
from edge.generate.hole import parse_place

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "text", "prompt_tokens", "reused_tokens", "generated_tokens", "ttft_s", "total_s",
    "decode_tok_s", "stopped_by",
}  # fmt: skip


@pytest.fixture
def complete(demo_out, capfdbinary, monkeypatch):
    """Runs the command on the demo; exit code, bytes on stdout, text on stderr."""

    def run(*words, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
        code = main(["complete", *map(str, words), "--model", str(demo_out / "mlx-fp16")])
        out, errors = capfdbinary.readouterr()
        return code, out, errors.decode()

    return run


# --- the middle


def test_it_prints_the_middle_and_nothing_else(complete, tmp_path):
    (tmp_path / "a.py").write_text("for key, value in d.():\n    print(key, value)\n")
    done = complete(f"{tmp_path / 'a.py'}:1:21", "--order", "spm")
    assert done == (0, b"items", "")


def test_json_has_the_agreed_keys_and_the_text_of_the_plain_output(complete):
    words = ("--prefix", "import os\r\nimport ", "-n", "12")
    _, out, _ = complete(*words, "-o", "json")
    document = json.loads(out)
    assert set(document) == KEYS
    assert "\r\n" in document["text"]
    assert complete(*words)[1].decode() == document["text"]


def test_a_completion_imports_nothing_heavy(tmp_path):
    """transformers alone takes longer to import than a completion."""
    script = (
        "import sys; from edge.cli.main import main\n"
        "how = ['--temperature', '0.5', '--top-p', '0.9', '--repetition-penalty', '1.1']\n"
        "assert main(['complete', '--prefix', 'x = ', '-n', '3', *how]) == 0\n"
        "heavy = 'transformers mlx_lm numpy matplotlib rich jinja2 huggingface_hub safetensors'\n"
        "print('|', [name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("| []\n")


# --- as it comes


class Reader(io.RawIOBase):
    """Notes what is written when; then does what it is told."""

    def __init__(self, after_first):
        self.pieces = []
        self._after_first = after_first

    def writable(self):
        return True

    def write(self, data):
        self.pieces.append(bytes(data))
        if len(self.pieces) == 1:
            self._after_first()
        return len(data)


def run_into(reader, monkeypatch, *words):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(reader)))
    return main(["complete", *words])


LONG = ("--prefix", "import os\nimport ", "--no-stop-rules", "-n", "30")


def test_text_is_written_as_it_comes(monkeypatch, complete):
    reader = Reader(lambda: None)
    assert run_into(reader, monkeypatch, *LONG) == 0
    assert len(reader.pieces) > 3
    assert b"".join(reader.pieces) == complete(*LONG)[1]


def test_ctrl_c_keeps_what_came(monkeypatch, capsys):
    reader = Reader(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run_into(reader, monkeypatch, *LONG) == 130
    assert b"".join(reader.pieces) != b""
    assert len(reader.pieces) <= 2
    assert capsys.readouterr().err == "edge complete: interrupted\n"


def test_sampling_reaches_the_tokens(complete):
    hot = (*LONG, "--temperature", "1.5", "--top-p", "0.95", "--top-k", "50", "--min-p", "0.01")
    texts = [complete(*hot, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = complete(*LONG)[1]
    assert complete(*LONG, "--temperature", "0")[1] == greedy
    assert complete(*LONG, "--temperature", "2", "--top-k", "1")[1] == greedy
    assert complete(*LONG, "--repetition-penalty", "3")[1] != greedy


# --- bad input


@pytest.mark.parametrize(
    ("words", "stdin", "sentence"),
    [
        (["none.py:1"], b"", "none.py is missing"),
        (["a.py"], b"", "'a.py' names no line"),
        (["a.py:0"], b"", "a.py has lines 1 to 3, not 0"),
        (["a.py:4"], b"", "a.py has lines 1 to 3, not 4"),
        (["a.py:1:6"], b"", "line 1 of a.py has columns 1 to 5, not 6"),
        (["a.py:1:0"], b"", "line 1 of a.py has columns 1 to 5, not 0"),
        (["binary:1"], b"", "binary is binary"),
        (["latin:1"], b"", "latin is not UTF-8 at byte 3"),
        ([".:1"], b"", ". is not a file"),
        (["a.py:1", "--prefix", "x"], b"", "given twice"),
        (["a.py:1", "--suffix", ""], b"", "given twice"),
        ([], b"no mark", "stdin has the cursor mark <CURSOR> 0 times"),
        ([], b"", "stdin has the cursor mark <CURSOR> 0 times"),
        ([], b"<CURSOR> <CURSOR>", "<CURSOR> 2 times"),
        ([], b"<CURSOR>\xff", "stdin is not UTF-8 at byte 8"),
        (["--cursor", ""], b"x", "--cursor is empty"),
        (["--prefix", os.fsdecode(b"caf\xe9")], b"", "--prefix is not UTF-8"),
        (["--suffix", os.fsdecode(b"caf\xe9")], b"", "--suffix is not UTF-8"),
        (["--prefix", "x", "--context", "none.py"], b"", "none.py is missing"),
        (["--prefix", "x", "-n", "1021"], b"", "choose from 1 to 1020"),
    ],
)
def test_bad_input_is_one_sentence(complete, tmp_path, monkeypatch, words, stdin, sentence):
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("ab()\nc\n")
    Path("binary").write_bytes(b"\x7fELF\0\0")
    Path("latin").write_bytes(b"caf\xe9\n")
    code, out, errors = complete(*words, stdin=stdin)
    assert (code, out) == (1, b"")
    assert errors.startswith("edge complete: ")
    assert sentence in errors
    assert errors.count("\n") == 1


# --- places


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a.py:3", ("a.py", 3, None)),
        ("a.py:3:7", ("a.py", 3, 7)),
        (r"C:\x\a.py:3", (r"C:\x\a.py", 3, None)),
        (r"C:\x\a.py:3:7", (r"C:\x\a.py", 3, 7)),
        ("a:b:3", ("a:b", 3, None)),
        ("a:1:3:7", ("a:1", 3, 7)),
        ("a b\n:3", ("a b\n", 3, None)),
    ],
)
def test_the_last_numbers_are_line_and_column(place, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, line, column = parse_place(place)
    assert (str(path), line, column) == expected


@pytest.mark.parametrize("place", ["", "a", "a:", ":3", "a:x", "a:-1", "a:1.5", "a:٣"])
def test_a_place_without_a_line(place):
    with pytest.raises(EdgeError, match="names no line"):
        parse_place(place)


def test_a_cursor_behind_context_is_named(complete, tmp_path):
    (tmp_path / "a.py").write_text("x\n")
    code, _, errors = complete("--context", tmp_path / "a.py", f"{tmp_path / 'a.py'}:1")
    assert code == 1
    assert f"{tmp_path / 'a.py'}:1 is missing" in errors
