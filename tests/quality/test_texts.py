"""Which texts are read, in which order, and what is refused."""

import pytest

from edge.errors import EdgeError
from edge.quality.texts import BUNDLED, SourceText, corpus_name, iter_texts, read_texts


def names(path):
    return [text.name for text in read_texts(path)]


def test_the_bundled_sample_is_code_and_nothing_about_it():
    found = names(None)
    assert len(found) >= 5
    assert found == sorted(found)
    assert not {"README.md", "LICENSE"} & set(found)
    assert all((BUNDLED / name).is_file() for name in found)


def test_a_folder_is_walked_in_order_without_what_nobody_wrote(tmp_path):
    for name in ("b.py", "a/z.c", "a/b/y.rs", ".git/config", ".hidden.py", "node_modules/x.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"// {name}")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /usr")
    (tmp_path / "env" / "lib.py").write_text("x")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "blank.py").write_text(" \n")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(tmp_path) == ["a/b/y.rs", "a/z.c", "b.py"]
    assert read_texts(tmp_path)[2] == SourceText("b.py", "// b.py")


def test_a_file_is_its_text(tmp_path):
    (tmp_path / "x.py").write_bytes("\ufeffé\r\n".encode())
    assert read_texts(tmp_path / "x.py") == [SourceText("x.py", "é\r\n")]
    assert corpus_name(tmp_path / "x.py") == "x.py"


def test_a_folder_is_read_as_it_is_used(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.py").write_text("x")
    texts = iter_texts(tmp_path)
    assert next(texts).name == "0.py"
    (tmp_path / "1.py").write_text("later")
    assert next(texts).text == "later"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\0\1", "binary"), (b"\xff\xfe", "no UTF-8"), (b"", "empty"), (b" \n", "blank")],
)
def test_a_named_file_that_is_no_text_is_refused(content, said, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(EdgeError, match=said):
        read_texts(tmp_path / "x")


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(EdgeError, match="is missing"):
        read_texts(tmp_path / "none")
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(EdgeError, match="holds no text file"):
        read_texts(tmp_path)
