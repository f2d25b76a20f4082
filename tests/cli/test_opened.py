"""What is too large is refused before it is loaded; what runs is kept resident meanwhile."""

import contextlib

import pytest

from edge.cli import main, model_path
from edge.cli.opened import open_for, opened
from edge.device.memory import MemoryRoom
from edge.model import load as loading
from edge.model import memory as model_memory

COMMANDS = (("complete", "--prefix", "def f("), ("chat", "-p", "hello", "--quiet"))


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)


@pytest.fixture
def room(monkeypatch):
    """Sets how much memory there is, now and at most."""

    def has(now_bytes, most_bytes):
        found = MemoryRoom(now_bytes, most_bytes, "memory")
        monkeypatch.setattr(model_memory, "available_bytes", lambda: found)

    return has


@pytest.fixture
def resident(monkeypatch):
    """Bytes asked to be resident, and 0 when that ends, in the order of time."""
    seen = []

    @contextlib.contextmanager
    def wired(need_bytes):
        seen.append(need_bytes)
        yield
        seen.append(0)

    for module in ("edge.cli.opened", "edge.cli.chat", "edge.chat.session"):
        monkeypatch.setattr(f"{module}.wired", wired)
    return seen


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_model_that_does_not_fit_is_refused_with_the_numbers(words, room, monkeypatch, capsys):
    room(10**6, 2 * 10**6)
    monkeypatch.setattr(loading, "_read_weights", lambda path: pytest.fail("it was loaded"))
    assert main.main(list(words)) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "needs" in sentence and "1 MB of memory are available" in sentence


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_what_other_programs_stand_in_the_way_of_is_tried_with_a_warning(words, room, capsys):
    room(10**6, 10**12)
    assert main.main([*words, "-n", "1"]) == 0
    assert f"edge {words[0]}: warning: " in capsys.readouterr().err


def test_a_model_is_resident_while_it_is_open(resident):
    need_bytes = open_for("complete", model_path.DEMO).need.running_bytes
    with pytest.raises(KeyError), opened(model_path.DEMO, "complete"):
        assert resident == [need_bytes]
        raise KeyError
    assert need_bytes > 10_000_000


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_commands_keep_their_model_resident(words, resident):
    assert main.main([*words, "-n", "1"]) == 0
    assert resident == [open_for(words[0], model_path.DEMO).need.running_bytes, 0]
