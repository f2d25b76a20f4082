import pytest

from edge.errors import EdgeError
from edge.formats.files import atomic_write, check_writable


def test_a_file_appears_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "file"
    with atomic_write(target) as partial:
        partial.write_text("x")
        assert not target.exists()
        assert partial.parent == target.parent  # the same disk: renaming is atomic
    assert target.read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_replaces_an_older_one_whole(tmp_path):
    target = tmp_path / "dir"
    target.mkdir()
    (target / "old").write_text("")
    with atomic_write(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("")
        assert (target / "old").exists()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_failure_keeps_the_old_and_leaves_nothing(tmp_path, error, kind):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as partial:
        if kind == "file":
            partial.write_text("half")
        else:
            partial.mkdir()
            (partial / "part").write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgeError, match="cannot be written"),
        atomic_write(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.parametrize("before", ["nothing", "file", "directory"])
def test_forgetting_to_write_is_an_error_and_keeps_the_old(tmp_path, before):
    target = tmp_path / "x"
    if before == "file":
        target.write_text("old")
    elif before == "directory":
        target.mkdir()
    with pytest.raises(EdgeError, match="cannot be written"), atomic_write(target):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ([] if before == "nothing" else ["x"])


def test_a_folder_is_tried_before_it_is_needed(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="cannot be written"):
        check_writable(tmp_path / "file" / "folder")
