"""Holes filled by the demo on MLX and on llama.cpp, and what the rows say of it."""

import contextlib

import pytest
from edge.quality.fim.hole import Hole
from edge.quality.fim.journal import Journal
from edge.quality.fim.splits import KINDS, draw_holes
from edge.quality.texts import SourceText

import edge
from edge.generate.fim import Infiller
from edge.generate.llama_source import LlamaSource
from edge.generate.token_source import MlxSource
from edge.llama_cpp.session import LlamaSession
from edge.quality.fim.fill import Filled, Settings, fill_all, fill_key, window_tokens
from edge.quality.fim.rows import Result, build_rows, by_kind, markdown, samples, samples_text

SETTINGS = Settings(order="spm", max_tokens=16, window_tokens=192)
COMPUTED = {"artefact": "mlx-fp16", "fingerprint": "f", "engine": "mlx"}
KEY = fill_key(COMPUTED, SETTINGS)


@pytest.fixture(scope="module")
def holes(held_out_text):
    texts = [SourceText("held_out.py", held_out_text)]
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, 6, seed=3)]


@pytest.fixture(scope="module")
def mlx(demo_out):
    model, tokenizer = edge.load(demo_out / "mlx-fp16")
    return Infiller(MlxSource(model, context_tokens=SETTINGS.window_tokens), tokenizer)


@pytest.fixture(scope="module")
def llama(demo_out, mlx):
    session = LlamaSession(demo_out / "gguf-f16.gguf", SETTINGS.window_tokens, threads=1)
    with contextlib.closing(session):
        yield Infiller(LlamaSource(session, SETTINGS.window_tokens), mlx._tokenizer)


def unseen(done):
    assert 0 <= done <= 1


def fill(folder, infiller, holes):
    @contextlib.contextmanager
    def opened():
        yield infiller

    return fill_all(opened, holes, SETTINGS, Journal(folder, KEY), unseen)


def same(filled):
    return [(f.text, f.stopped_by, f.prompt_tokens, f.generated_tokens) for f in filled]


def test_both_engines_write_the_same_middles(mlx, llama, holes, tmp_path):
    ours, theirs = (
        same(fill(tmp_path / name, infiller, holes))
        for name, infiller in (("mlx", mlx), ("llama", llama))
    )
    assert len({text for text, *_ in ours}) > 4
    # llama.cpp keeps keys and values in half precision, so that a close choice may fall otherwise.
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(holes) - 1
    assert [a[2] for a in ours] == [b[2] for b in theirs]


def test_a_middle_depends_on_its_hole_alone(mlx, holes, tmp_path):
    there = same(fill(tmp_path / "a", mlx, holes[:4]))
    back = same(fill(tmp_path / "b", mlx, holes[3::-1]))
    assert back == there[::-1]


def test_a_run_that_was_stopped_goes_on(mlx, holes, tmp_path):
    whole = fill(tmp_path / "whole", mlx, holes[:4])
    calls = []

    class Stopped:
        def forget(self):
            pass

        def complete(self, *hole, **options):
            calls.append(hole)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return mlx.complete(*hole, **options)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "part", Stopped(), holes[:4])
    assert same(fill(tmp_path / "part", Stopped(), holes[:4])) == same(whole)
    assert len(calls) == 5
    kept = fill_all(lambda: 1 / 0, holes[:4], SETTINGS, Journal(tmp_path / "part", KEY), unseen)
    assert same(kept) == same(whole)


def test_the_key_knows_what_matters():
    others = [
        fill_key({**COMPUTED, "artefact": "mlx-int4"}, SETTINGS),
        fill_key({**COMPUTED, "compute_dtype": "float32"}, SETTINGS),
        fill_key(COMPUTED, Settings("psm", 16, 192)),
        fill_key(COMPUTED, Settings("spm", 17, 192)),
        fill_key(COMPUTED, Settings("spm", 16, 193)),
    ]
    assert all(a != b for i, a in enumerate([KEY, *others]) for b in [KEY, *others][:i])


def test_the_window():
    assert [window_tokens(n) for n in (1024, 4096, 16384)] == [512, 2048, 2048]


# --- rows


def hole(name, kind="k"):
    return Hole(name, kind, "def f():\n", "\n", "    return 1")


def filled(text, reason="stop token"):
    return Filled(text, reason, prompt_tokens=9, generated_tokens=3, seconds=0.5)


HOLES = [hole("a"), hole("b"), hole("c", "other")]
REFERENCE = Result("mlx-fp16", HOLES, [filled("    return 1")] * 3)
WORSE = Result("x", HOLES, [filled("\x1b[2J"), filled("    return 1"), filled("", "indent")])


def test_rows_are_by_kind_and_compared_by_hole():
    results = [*by_kind(WORSE), *by_kind(REFERENCE)]
    rows = build_rows(results, "mlx-fp16")
    assert [(row["artefact"], row["kind"], row["samples"]) for row in rows] == [
        ("x", "k", 2), ("x", "other", 1), ("mlx-fp16", "k", 2), ("mlx-fp16", "other", 1),
    ]  # fmt: skip
    assert [row["exact_match"] for row in rows] == [0.5, 0, 1, 1]
    assert rows[0]["change"]["lost"] == 1 and rows[0]["change"]["reference"] == "mlx-fp16"
    assert rows[1]["stopped_by"] == {"indent": 1}
    assert rows[2]["change"] is None
    assert rows[0]["seconds"] == 1.0
    assert all(row["change"] is None for row in build_rows(results, None))
    text = markdown(rows)
    assert text.count("\n|") == 5 and "-50.0 [" in text and "indent 1" in text


def test_samples_show_what_cannot_be_seen():
    shown = samples([*by_kind(REFERENCE), *by_kind(WORSE)], 1)
    assert [entry["name"] for entry in shown] == ["a", "c"]
    text = samples_text(shown)
    assert "'    return 1'" in text and r"'\x1b[2J'  (stop token)" in text
    assert all(line.isprintable() for line in text.splitlines())
