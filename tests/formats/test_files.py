import pytest

from edge.errors import EdgeError
from edge.formats.files import atomic_write, check_writable, safe_name


def write(path, kind, text):
    """A file or a folder with one file, with this text in it."""
    if kind == "folder":
        path.mkdir()
    (path / "x" if kind == "folder" else path).write_text(text)


@pytest.mark.parametrize(
    ("old", "new"), [(None, "file"), (None, "folder"), ("file", "file"), ("folder", "folder")]
)
def test_an_output_replaces_the_old_one_only_when_complete(tmp_path, old, new):
    target = tmp_path / "made" / "x"
    if old:
        target.parent.mkdir()
        write(target, old, "old")
    with atomic_write(target) as partial:
        write(partial, new, "new")
        assert target.exists() == (old is not None)
        assert partial.parent == target.parent  # the same disk: renaming is atomic
    assert (target / "x" if new == "folder" else target).read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
@pytest.mark.parametrize("old", [None, "file", "folder"])
def test_a_failed_write_keeps_the_old_output_and_leaves_no_temporary(tmp_path, error, old):
    """`error` None: nothing is written."""
    target = tmp_path / "x"
    if old:
        write(target, old, "old")
    with pytest.raises(error or EdgeError), atomic_write(target) as partial:
        if error:
            write(partial, "folder", "half")
            raise error
    assert list(tmp_path.iterdir()) == ([target] if old else [])


def test_check_writable_makes_the_folder_or_refuses_it(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="cannot be written"):
        check_writable(tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("stable-code-3b", "stable-code-3b"),
        ("My model (v2)", "My model (v2)"),
        ("..", "model"),
        ("", "model"),
        (".hidden", "hidden"),
        ("../../etc/passwd", "-..-etc-passwd"),
        ("a\\b:c\x1b[2J\n\udcff", "a-b-c-[2J--"),
        ("é" * 999, "é" * 100),
    ],
)
def test_untrusted_text_names_one_visible_file(text, name, tmp_path):
    assert safe_name(text) == name
    (tmp_path / name).touch()
