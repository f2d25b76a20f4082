"""A kill at any moment leaves the old artefact or none, and the next run puts all in order."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FLOATS = ["mlx-int4", "gguf-f16"]


def names_of(artefacts):
    return {name if name.startswith("mlx") else f"{name}.gguf" for name in artefacts}


def kill(tmp_path, artefacts, older, progress=False, stride=1, times=()):
    """Every attempt's report; the folder's state before was `older`."""
    source = write_checkpoint(tmp_path / "new", CONFIGS["stable-code"], seed=0)
    old = write_checkpoint(tmp_path / "old", CONFIGS["stable-code"], seed=7) if older else None
    job = {
        "folder": str(tmp_path),
        "source": str(source),
        "older": old and str(old),
        "artefacts": artefacts,
        "progress": progress,
        "stride": stride,
        "times": list(times),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_converter", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
        # macOS else refuses to fork a process that has loaded its frameworks.
        env={**os.environ, "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"},
    )
    first, *attempts = map(json.loads, done.stdout.splitlines())
    print(f"{len(attempts)} kills at {first['steps']} steps, {first['took_s']:.2f} s undisturbed")
    return first["steps"], attempts


def check(attempts, artefacts, older):
    """What must hold wherever the kill came."""
    names = names_of(artefacts)
    for attempt in attempts:
        report = attempt["report"]
        assert report is not None, attempt
        assert report["problems"] == [], attempt
        assert report["visible"].keys() <= names, attempt
        assert set(report["visible"].values()) <= {"new", "old"}, attempt
        assert report["after"] == dict.fromkeys(names, "new"), attempt
        assert report["hidden"] == [], attempt
        assert report["alive"] == 0, attempt
        kept = set() if older else {n.removesuffix(".gguf") for n in report["visible"]}
        assert set(report["kept"]) == kept, attempt


@pytest.mark.parametrize("older", [False, True], ids=["nothing-before", "forced-over-old"])
def test_killed_before_every_single_step(tmp_path, older):
    steps, attempts = kill(tmp_path, FLOATS, older)
    assert steps > 20
    assert all(attempt["killed"] for attempt in attempts)
    check(attempts, FLOATS, older)
    states = [attempt["report"]["visible"] for attempt in attempts]
    if older:
        assert states[0] == dict.fromkeys(names_of(FLOATS), "old")
        assert {"mlx-int4": "new"}.items() <= states[-1].items()
        # Between its two renames a directory is away; it has come back or is made again.
        away = [attempt for attempt in attempts if "mlx-int4" not in attempt["report"]["visible"]]
        assert len(away) == 1
    else:
        assert states[0] == {}
        assert states[-1].keys() == {"mlx-int4"} or len(states[-1]) == 2


def test_killed_at_any_time_with_a_quantiser_at_work(tmp_path):
    artefacts = ["mlx-int4", "gguf-q6_k"]
    rng = random.Random(5)
    times = [(i + rng.random()) / 5 for i in range(5)]
    _, attempts = kill(tmp_path, artefacts, False, progress=True, stride=25, times=times)
    check(attempts, artefacts, False)
    assert sum(attempt["killed"] for attempt in attempts) > 5
