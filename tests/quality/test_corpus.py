"""Texts of a corpus, the windows cut from them, and the bundled sample."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.quality.corpus import SourceText, TokenBytes, iter_texts, make_windows
from edge.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO_PATH)
CODE = "def f(x):\n    return [y for y in x if y]\n"
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def test_hidden_binary_and_installed_files_are_skipped(tmp_path):
    read = {"a/b/y.rs": b"y", "a/z.c": b"z", "b.py": b"b"}
    skipped = {".git/config": b"x", ".hidden.py": b"x", "node_modules/x.js": b"x",
               "env/pyvenv.cfg": b"x", "env/lib.py": b"x", "picture.png": b"\x89PNG\0",
               "latin.txt": b"caf\xe9", "blank.py": b" \n"}  # fmt: skip
    for name, content in {**skipped, **dict(reversed(read.items()))}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to(tmp_path)
    texts = iter_texts(tmp_path)
    assert next(texts).name == "a/b/y.rs"
    (tmp_path / "b.py").write_text("later")  # texts are read one at a time
    assert [(t.name, t.text) for t in texts] == [("a/z.c", "z"), ("b.py", "later")]


def test_file_without_text_is_refused(tmp_path):
    file = tmp_path / "x.py"
    file.write_bytes("\ufeffé\r\n".encode())
    assert list(iter_texts(file)) == [SourceText("x.py", "é\r\n")]
    for content, said in ((b"\0", "binary"), (b"\xff", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(EdgeError, match=said):
            list(iter_texts(file))
        assert list(iter_texts(tmp_path)) == []
    with pytest.raises(EdgeError, match="0 tokens of corpus are too few"):
        cut([], 4)


def cut(texts, window, tokens=None, tokenizer=TOKENIZER):
    sources = [SourceText(f"{i}.py", text) for i, text in enumerate(texts)]
    return make_windows(sources, tokenizer, "corpus", window, tokens)


def lengths(text):
    return TokenBytes(TOKENIZER).lengths(TOKENIZER.encode(text, add_special_tokens=False), text)


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(2, 9), st.integers(0, 40))
def test_windows_score_each_token_once(texts, window, extra):
    ids, sizes = [], []
    for text in texts:
        ids += [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
        sizes += [*lengths(text), None]  # EOS has no bytes
    whole = len(ids) // window
    used = min(whole, (window + extra) // window)
    places = [i * whole // used * window for i in range(used)]
    scored = [p + k for p in places for k in range(1, window) if sizes[p + k] is not None]
    if not scored:
        with pytest.raises(EdgeError, match="a token to score"):
            cut(texts, window, window + extra)
        return
    found = cut(texts, window, window + extra)
    assert found.ids.tolist() == [ids[p : p + window] for p in places]
    assert found.scored.sum() == len(scored) == len(set(scored))
    assert len(found) + found.left_out == whole
    assert not found.bytes[~found.scored].any()
    assert found.bytes.sum() == sum(sizes[i] for i in scored)


def test_bos_replaces_the_first_token_of_each_window():
    class WithBos(Tokenizer):
        def encode(self, text, add_special_tokens=True):
            ids = super().encode(text, add_special_tokens)
            return [self.bos_token_id, *ids] if add_special_tokens else ids

    backend = TOKENIZER.backend_tokenizer
    tokenizer = WithBos(backend, {**TOKENIZER.special_tokens_map, "bos_token": "<fim_prefix>"})
    plain, begun = cut([CODE], 4), cut([CODE], 4, tokenizer=tokenizer)
    assert set(begun.ids[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert np.array_equal(begun.ids[:, 1:], plain.ids[:, 1:])


def test_corpus_digest_covers_names_and_texts():
    found = cut(["ab" * 20, "cd"], 4)
    pieces = (b"0.py", b"ab" * 20, b"1.py", b"cd")
    data = b"".join(len(p).to_bytes(8, "little") + p for p in pieces)
    assert found.corpus.sha256 == hashlib.sha256(data).hexdigest()
    assert (found.corpus.texts, found.corpus.bytes) == (2, 42)


@given(WORDS)
def test_bytes_of_tokens_add_up_to_the_text(text):
    assert sum(lengths(text)) == len(text.encode())
    assert lengths("<|endoftext|>") == [13]  # its spelling


def test_bytes_of_sentencepiece_spaces_and_byte_tokens():
    pieces = SimpleNamespace(
        backend_tokenizer=SimpleNamespace(decoder=None),
        convert_ids_to_tokens=("\u2581def", "\u2581f", "<0x0A>", "é").__getitem__,
    )
    assert TokenBytes(pieces).lengths([0, 1, 2, 3], "def f\né") == [3, 2, 1, 2]
    assert TokenBytes(pieces).lengths([0, 1], " def f") == [4, 2]
