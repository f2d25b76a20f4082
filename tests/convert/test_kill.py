import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("forced", [False, True], ids=["nothing-before", "forced-over-old"])
def test_a_kill_before_any_step_leaves_the_old_artefact_or_none(tmp_path, forced):
    source, older = (
        str(write_checkpoint(tmp_path / f"{seed}", CONFIGS["stable-code"], seed)) for seed in (0, 7)
    )
    job = {"folder": str(tmp_path), "source": source, "older": older if forced else None}
    job |= {"artefacts": ["mlx-int4", "gguf-f16"]}
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
    assert len(attempts) > 20
    for attempt in attempts:
        seen = {n: age for n, age in attempt["visible"].items() if not n.startswith(".")}
        assert attempt["killed"]
        assert set(seen.values()) <= {"source", "older"}, attempt
        assert attempt["after"] == {"mlx-int4": "source", "gguf-f16.gguf": "source"}, attempt
        assert set(attempt["kept"]) == (set() if forced else seen.keys()), attempt
    mlx = [attempt["visible"].get("mlx-int4") for attempt in attempts]
    assert (mlx[0], mlx[-1]) == ("older" if forced else None, "source")
    assert not forced or mlx.count(None) == 1  # between the two renames
