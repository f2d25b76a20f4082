"""`edge complete` as a user or an editor calls it."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from edge.cli.main import main
from edge.generate.fim import parse_place

KEYS = {
    "text", "prompt_tokens", "reused_tokens", "generated_tokens", "ttft_s", "total_s",
    "decode_tok_s", "stopped_by",
}  # fmt: skip
LONG = ("--prefix", "#include <stdio.h>\n\n", "--no-stop-rules", "-n", "30")


@pytest.fixture
def complete(demo_out, command):
    return partial(command, "complete", "--model", demo_out / "mlx-fp16")


def test_only_the_middle_is_printed_and_json_has_the_same_text(complete, tmp_path):
    (tmp_path / "a.py").write_text("for key, value in d.():\n    print(key, value)\n")
    done = complete(f"{tmp_path / 'a.py'}:1:21", "--order", "spm")
    assert done == (0, "items", "")
    words = ("--prefix", "#include <stdio.h>\r\n\r\n", "-n", "12")
    document = json.loads(complete(*words, "-o", "json")[1])
    assert set(document) == KEYS
    assert "\r\n" in document["text"]
    assert complete(*words)[1] == document["text"]


def test_several_places_have_a_heading_each_and_the_text_they_get_alone(complete, tmp_path):
    (tmp_path / "a.py").write_text("for key, value in d.():\n    print(key, value)\n")
    places = [f"{tmp_path / 'a.py'}:1:21", f"{tmp_path / 'a.py'}:2"]
    alone = [complete(place, "--order", "spm", "-n", "9")[1] for place in places]
    words = (*places, "--order", "spm", "-n", "9")
    parts = [f"==> {place} <==\n{text}" for place, text in zip(places, alone, strict=True)]
    assert complete(*words) == (0, "\n\n".join(parts), "")
    documents = json.loads(complete(*words, "-o", "json")[1])
    assert [document.pop("place") for document in documents] == places
    assert [document["text"] for document in documents] == alone
    assert all(set(document) == KEYS for document in documents)


def test_text_is_streamed_and_ctrl_c_keeps_the_beginning(monkeypatch, capsys):
    pieces, then = [], [lambda: None]
    write = lambda text: (pieces.append(text), then[0]())  # noqa: E731
    monkeypatch.setattr("edge.cli.complete.write_stdout", write)
    assert main(["complete", *LONG]) == 0
    whole = pieces[:]
    assert len(whole) > 3
    pieces.clear()
    then[0] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert main(["complete", *LONG]) == 130
    assert pieces == whole[:1]
    assert capsys.readouterr().err == "edge complete: interrupted\n"


def test_sampling_options_change_the_text(complete):
    hot = (*LONG, "--temperature", "1.5", "--top-p", "0.95", "--top-k", "50", "--min-p", "0.01")
    texts = [complete(*hot, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = complete(*LONG)[1]
    assert complete(*LONG, "--temperature", "2", "--top-k", "1")[1] == greedy
    assert complete(*LONG, "--repetition-penalty", "3")[1] != greedy


@pytest.mark.parametrize(
    ("words", "stdin", "sentence"),
    [
        (["none.py:1"], b"", "none.py is missing"),
        (["a.py:x"], b"", "'a.py:x' has no line number"),
        (["a.py:4"], b"", "a.py has lines 1 to 3, not 4"),
        (["a.py:1:6"], b"", "line 1 of a.py has columns 1 to 5, not 6"),
        (["binary:1"], b"", "binary is binary"),
        (["a.py:1", "--prefix", "x"], b"", "a.py:1 does not go with --prefix"),
        ([], b"<CURSOR> <CURSOR>", "<CURSOR> 2 times"),
        ([], b"<CURSOR>\xff", "stdin is not UTF-8 at byte 8"),
        (["--cursor", ""], b"x", "--cursor is empty"),
        (["--prefix", os.fsdecode(b"caf\xe9")], b"", "--prefix is not UTF-8"),
        (["--context", "a.py", "a.py:1"], b"", "a.py:1 is missing"),
        (["--prefix", "x", "-n", "1021"], b"", "choose from 1 to 1020"),
    ],
)
def test_bad_input_is_one_error_line(command, tmp_path, monkeypatch, words, stdin, sentence):
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("ab()\nc\n")
    Path("binary").write_bytes(b"\x7fELF\0\0")
    error = command.refused("complete", *words, stdin=stdin)
    assert error.startswith("edge complete: ") and sentence in error


def test_last_numbers_of_a_place_are_line_and_column():
    places = (r"C:\x\a.py:3:7", "a:1:3:7", "a b\n:3")
    expected = [(Path(r"C:\x\a.py"), 3, 7), (Path("a:1"), 3, 7), (Path("a b\n"), 3, None)]
    assert [parse_place(place) for place in places] == expected
