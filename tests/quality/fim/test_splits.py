"""Held-out middles: where the cuts fall, and that everybody gets the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.fim_prompt import near_beginning, near_end
from edge.quality.fim.fill import WINDOW_TOKENS
from edge.quality.fim.hole import digest
from edge.quality.fim.splits import (
    AROUND_CHARACTERS,
    KINDS,
    LEAST_BREAKS,
    MOST_BREAKS,
    draw_holes,
)
from edge.quality.texts import SourceText

CODE = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(40))
TEXTS = [SourceText("a.py", CODE), SourceText("b.py", CODE[:300].replace("\n", "\r\n"))]
LINE = st.text(alphabet="aé😀\t x\r\x0c\u2028", min_size=1, max_size=12)


@given(
    st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n"])), min_size=8, max_size=20),
    st.integers(0, 2**40),
)
def test_a_hole_of_any_text_is_what_its_kind_says(lines, seed):
    text = "".join(line + end for line, end in lines)
    for kind in KINDS:
        try:
            holes = draw_holes([SourceText("f", text)], kind, 3, seed)
        except EdgeError:
            assert len(text.strip()) < 20
            continue
        assert len({(hole.prefix, hole.middle) for hole in holes}) == 3
        for hole in holes:
            assert hole.prefix + hole.middle + hole.suffix == text
            assert hole.middle.strip()
            for left, right in ((hole.prefix, hole.middle), (hole.middle, hole.suffix)):
                assert not (left.endswith("\r") and right.startswith("\n"))
            breaks = hole.middle.count("\n")
            assert breaks == 0 if kind == "single-line" else LEAST_BREAKS <= breaks <= MOST_BREAKS


def test_the_draw_is_the_same_everywhere():
    holes = [hole for kind in KINDS for hole in draw_holes(TEXTS, kind, 5, seed=7)]
    assert digest(holes)[:16] == "5a077c04618e7ac0"
    assert [hole.name for hole in holes[:2]] == ["a.py:47:17", "a.py:76:10"]


def test_fewer_samples_are_the_first_of_more():
    assert draw_holes(TEXTS, KINDS[1], 30, 1)[:10] == draw_holes(TEXTS, KINDS[1], 10, 1)
    assert draw_holes(TEXTS, KINDS[1], 10, 1) != draw_holes(TEXTS, KINDS[1], 10, 2)


def test_files_count_by_their_size():
    texts = [SourceText("large", "ab cd\n" * 900), SourceText("small", "ab cd\n" * 100)]
    holes = draw_holes(texts, "single-line", 400, 0)
    assert 0.85 < sum(hole.name.startswith("large:") for hole in holes) / 400 < 0.95


def test_cuts_are_uniform_over_characters():
    line = "abcdefghij" * 2
    text = SourceText("f", f"{line}\n" * 400)
    holes = draw_holes([text], "single-line", 1000, 0)
    columns = [int(hole.name.rpartition(":")[2]) for hole in holes]
    assert all(20 < columns.count(column) < 85 for column in range(1, 21))
    at_begin = [len(hole.middle) for hole in holes if hole.name.endswith(":1")]
    assert min(at_begin) < 5 and max(at_begin) > 15


def test_the_name_is_a_place_that_edge_complete_takes(tmp_path):
    from edge.generate.hole import read_hole

    (tmp_path / "b.py").write_text(TEXTS[1].text, newline="")
    for hole in draw_holes(TEXTS[1:], "multi-line", 5, 0):
        prefix, rest = read_hole(str(tmp_path / hole.name))
        assert (prefix, rest) == (hole.prefix, hole.middle + hole.suffix)


@pytest.mark.parametrize("texts", [[], [SourceText("f", "")], [SourceText("f", " \n \n \n")]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_without_holes_is_said(texts, kind):
    with pytest.raises(EdgeError, match=f"hardly more than 0 different {kind} holes"):
        draw_holes(texts, kind, 1, 0)


def test_a_corpus_with_too_few_holes_is_said():
    with pytest.raises(EdgeError, match=r"more than [1-3] different single-line holes; ask for"):
        draw_holes([SourceText("f", "ab")], "single-line", 5, 0)


def test_a_large_file_is_not_kept_once_per_hole():
    text = CODE * 1000
    (hole,) = draw_holes([SourceText("large.py", text)], "single-line", 1, seed=3)
    assert len(hole.prefix) == len(hole.suffix) == AROUND_CHARACTERS
    assert hole.prefix + hole.middle + hole.suffix in text
    # More than is looked at.
    assert len(near_end(hole.prefix, WINDOW_TOKENS)) < AROUND_CHARACTERS
    assert len(near_beginning(hole.suffix, WINDOW_TOKENS)) < AROUND_CHARACTERS
