"""A kill at any moment leaves the old artefact or none, and the next run puts all in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def kill(tmp_path, artefacts, older=None, progress=False, stride=1):
    """Every attempt's report, checked for what must hold wherever the kill came."""
    source = write_checkpoint(tmp_path / "new", CONFIGS["stable-code"], seed=0)
    job = {"folder": str(tmp_path), "source": str(source), "older": older and str(older)}
    job |= {"artefacts": artefacts, "progress": progress, "stride": stride}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_converter", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
        # macOS else refuses to fork a process that has loaded its frameworks.
        env={**os.environ, "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"},
    )
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    names = {name if name.startswith("mlx") else f"{name}.gguf" for name in artefacts}
    for attempt in attempts:
        seen = {n: age for n, age in attempt["visible"].items() if not n.startswith(".")}
        assert attempt["killed"]
        assert seen.keys() <= names, attempt
        assert set(seen.values()) <= {"source", "older"}, attempt
        assert attempt["after"] == dict.fromkeys(names, "source"), attempt
        assert set(attempt["kept"]) == (set() if older else seen.keys()), attempt
        assert attempt["alive"] == 0, attempt
    return attempts


@pytest.mark.parametrize("forced", [False, True], ids=["nothing-before", "forced-over-old"])
def test_killed_before_every_single_step(tmp_path, forced):
    older = write_checkpoint(tmp_path / "old", CONFIGS["stable-code"], 7) if forced else None
    attempts = kill(tmp_path, ["mlx-int4", "gguf-f16"], older)
    assert len(attempts) > 20
    mlx = [attempt["visible"].get("mlx-int4") for attempt in attempts]
    assert mlx[0] == ("older" if forced else None)
    assert mlx[-1] == "source"
    assert not forced or mlx.count(None) == 1  # between its two renames


def test_killed_with_a_quantiser_at_work(tmp_path):
    assert len(kill(tmp_path, ["mlx-int4", "gguf-q6_k"], progress=True, stride=15)) > 5
