"""What is in memory together."""

import pytest

from edge.convert.checkpoint import open_checkpoint
from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.model.memory import FORCE
from edge.quality.groups import make_groups, need_bytes
from edge.quality.scorer import MOST_POSITIONS, MOST_WINDOWS, Pieces
from edge.quality.subject import Subject

GB = 10**9
NEEDS = {"ref": 6 * GB, "a": 2 * GB, "b": 3 * GB, "c": 4 * GB}


def groups(free, most=None, reference="ref", names=("a", "b", "c")):
    return make_groups(
        names, NEEDS, reference, MemoryRoom(free * GB, (most or free) * GB, "memory")
    )


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (15, (("a", "b", "c"),)),
        (14, (("a", "b"), ("c",))),
        (10, (("a",), ("b",), ("c",))),
    ],
)
def test_as_many_as_fit_beside_the_reference(free, expected):
    found = groups(free)
    assert found.groups == expected
    assert found.most_bytes == max(6 * GB + sum(NEEDS[n] for n in g) for g in expected)
    assert bool(found.notes) == (len(expected) > 1)
    if found.notes:
        assert f"the reference ref was computed {len(expected)} times" in found.notes[0]


def test_without_a_reference_each_is_alone():
    found = groups(15, reference=None)
    assert found.groups == (("a",), ("b",), ("c",))
    assert found.most_bytes == 4 * GB
    assert not found.notes


def test_what_cannot_fit_is_refused_unless_forced(monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    with pytest.raises(EdgeError, match=r"ref and c need 10\.0 GB together"):
        groups(9)
    assert "ref and c need 10.0 GB together" in groups(9, most=12).notes[-1]
    monkeypatch.setenv(FORCE, "1")
    assert groups(9).groups == (("a",), ("b",), ("c",))


def test_needs_cover_the_weights_and_grow_with_the_window(demo_out):
    config = open_checkpoint("demo").config
    for name, path in (("mlx-fp16", "mlx-fp16"), ("gguf-q6_k", "gguf-q6_k.gguf")):
        subject = Subject(name, demo_out / path)
        small, large = (
            need_bytes(subject, config, w, Pieces.of(w, config.vocab_size)) for w in (64, 1024)
        )
        assert 4_000_000 < small < large < 2 * GB


@pytest.mark.parametrize("window", [2, 64, 512, 4096, 16384])
@pytest.mark.parametrize("vocab", [160, 4096, 50304, 256000])
def test_pieces_fit_into_their_room(window, vocab):
    room = 64 << 20
    found = Pieces.of(window, vocab, room)
    assert 4 * vocab * found.positions * found.windows <= room
    assert 1 <= found.positions <= min(window - 1, MOST_POSITIONS)
    assert 1 <= found.windows <= MOST_WINDOWS
    assert found.windows == 1 or found.positions == window - 1


def test_windows_go_side_by_side_only_where_they_are_short():
    at_once = {window: Pieces.of(window, 4096).windows for window in (2, 65, 129, 257, 513, 900)}
    assert at_once == {2: MOST_WINDOWS, 65: 8, 129: 4, 257: 2, 513: 1, 900: 1}
