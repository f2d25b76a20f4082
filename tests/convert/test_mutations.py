"""Thousands of spoilt checkpoints: each is an error sentence or a right artefact, and soon.

EDGE_FUZZ_CASES=20000 runs more, EDGE_FUZZ_SEED=7 others; a failure names the case, which
EDGE_FUZZ_CASE=1234 then runs alone.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from edge.convert.stream import Block
from edge.errors import EdgeError
from tests.support.hostile import MADE, is_sentence, run
from tests.support.mutations import BASES, GGUF_FILE, mutate, write_files
from tests.support.oracle import check_artefacts

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "1000"))
SEED = int(os.environ.get("EDGE_FUZZ_SEED", "0"))
ONLY = os.environ.get("EDGE_FUZZ_CASE")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make(folder / name) for name, make in BASES.items()}


def outcome(path: Path, out: Path) -> str | None:
    """Convert; the error's sentence if there is one, else the artefacts were right."""
    source = path / GGUF_FILE if (path / GGUF_FILE).exists() else path
    try:
        made = run(source, out)
    except EdgeError as error:
        left = list(out.iterdir()) if out.exists() else []
        assert left == [], "an error leaves nothing"
        return str(error)
    assert [a.recipe.name for a in made] == list(MADE)
    check_artefacts(path, out)
    return None


def run_case(number: int, bases: dict, folder: Path) -> str | None:
    """One case from its number alone."""
    rng = random.Random(f"{SEED} {number}")
    base = rng.choice(sorted(bases))
    files = dict(bases[base])
    how = [mutate(files, rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
    where = f"case {number} of seed {SEED}: {base}, {', '.join(how)}"
    path, out = write_files(folder / "model", files), folder / "out"
    try:
        answer = outcome(path, out)
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert answer is None or is_sentence(answer), f"{where}: {answer!r}"
    for made in (path, out):
        shutil.rmtree(made, ignore_errors=True)
    return answer


def test_a_spoilt_checkpoint_is_a_sentence_or_right(bases, tmp_path):
    if ONLY:
        print(run_case(int(ONLY), bases, tmp_path))
        return
    right = sum(run_case(number, bases, tmp_path) is None for number in range(CASES))
    assert 0.1 < right / CASES < 0.6  # both answers are common, or the test has lost its teeth


def test_a_wrong_weight_would_be_seen(bases, tmp_path, monkeypatch):
    """One weight off by a hundredth, whatever the source: the judge is awake."""
    rounded = Block._float

    def spoilt(block, name):
        array = rounded(block, name).copy()
        array.flat[0] *= array.dtype.type(1.01)
        return array

    monkeypatch.setattr(Block, "_float", spoilt)
    for base, files in bases.items():
        (tmp_path / base).mkdir()
        with pytest.raises(AssertionError):
            outcome(write_files(tmp_path / base / "model", files), tmp_path / base / "out")
