"""Holes filled by the demo with MLX and llama.cpp, and the rows of the results."""

import mlx.core as mx
import pytest

from edge.formats.files import DEMO_PATH
from edge.quality import records
from edge.quality.corpus import SourceText
from edge.quality.fim import fill as module
from edge.quality.fim.fill import Filled, Settings, fill_all
from edge.quality.fim.holes import KINDS, Hole, draw_holes
from edge.quality.fim.score import build_rows, samples, samples_text, text
from edge.quality.records import Subject
from edge.tokenizer.tokenizer import Tokenizer

SETTINGS = Settings(order="spm", max_tokens=16, window_tokens=192)
TOKENIZER = Tokenizer.load(DEMO_PATH)


@pytest.fixture(scope="module")
def holes(held_out_text):
    texts = [SourceText("held_out.py", held_out_text)]
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, 6, seed=3)]


@pytest.fixture
def fill(demo_out, tmp_path):
    """fill(holes, options): (text, stopped_by) of each middle."""

    def run(holes, folder=tmp_path, file="mlx-fp16", settings=SETTINGS, progress=lambda _: None):
        subject = Subject(file, demo_out / file)
        done = fill_all(subject, holes, settings, TOKENIZER, folder, 1, progress, pytest.fail)
        return [(filled.text, filled.stopped_by) for filled in done]

    return run


def test_both_engines_write_the_same_middles(fill, holes):
    ours, theirs = (fill(holes, file=file) for file in ("mlx-fp16", "gguf-f16.gguf"))
    assert len({text for text, _ in ours}) > 4
    # llama.cpp's half-precision KV cache may change a close choice.
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(holes) - 1


def test_interrupted_run_continues(fill, holes, tmp_path, monkeypatch):
    def stop(share):
        if share >= 0.5:
            raise KeyboardInterrupt

    # In reverse order: a middle depends on its hole only.
    whole, seen = fill(holes[3::-1], folder=tmp_path / "whole")[::-1], []
    with pytest.raises(KeyboardInterrupt):
        fill(holes[:4], progress=stop)
    assert fill(holes[:4], progress=seen.append) == whole
    assert seen == [0.5, 0.75, 1]
    monkeypatch.setattr(module, "_open_completer", None)  # not opened again
    assert fill(holes[:4]) == whole


def test_other_settings_rules_or_dtype_fill_again(fill, holes, tmp_path, monkeypatch):
    for settings in (SETTINGS, Settings("psm", 16, 192), Settings("spm", 15, 192)):
        fill(holes[:1], settings=settings)
    for name, value in (("rules_version", "other"), ("compute_dtype", mx.bfloat16)):
        owner = module if hasattr(module, name) else records
        monkeypatch.setattr(owner, name, lambda value=value: value)
        fill(holes[:1])
    assert len(list(tmp_path.iterdir())) == 5


GIVEN = Filled("    return 1", "stop token", 0.5)
HOLES = [Hole(name, name[0], "def f():\n", "\n", GIVEN.text) for name in ("k1", "k2", "other")]
MIDDLES = {
    "x": [Filled("\x1b[2J", "stop token", 0.5), GIVEN, Filled("", "indent", 0.5)],
    "mlx-fp16": [GIVEN] * 3,
}


def test_rows_by_kind_compared_by_hole():
    rows = build_rows(HOLES, MIDDLES, "mlx-fp16")
    assert [(row["artefact"], row["kind"], row["samples"]) for row in rows] == [
        ("x", "k", 2), ("x", "o", 1), ("mlx-fp16", "k", 2), ("mlx-fp16", "o", 1),
    ]  # fmt: skip
    assert [row["exact_match"] for row in rows] == [0.5, 0, 1, 1]
    assert rows[0]["change"]["lost"] == 1 and rows[0]["change"]["reference"] == "mlx-fp16"
    assert (rows[1]["stopped_by"], rows[2]["change"]) == ({"indent": 1}, None)
    assert rows[0]["seconds"] == 1.0
    shown = text(rows, None)
    assert shown.count("\n|") == 5 and "-50.0 (" in shown and "indent 1" in shown
    shown = samples(HOLES, MIDDLES, 1)
    assert [entry["name"] for entry in shown] == ["k1", "other"]
    assert r"'\x1b[2J'  (stop token)" in samples_text(shown)
