"""`make mac-check`, on programs that answer as macOS's do."""

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.support import fake_powermetrics
from tests.support.profiles import ROOT

ANSWERS = {
    "sw_vers": "echo 27.0",
    "uv": "echo uv 0.13.9",
    "sysctl": "echo 1",
    "ioreg": "echo '  \"gpu-core-count\" = 40'; echo '  \"IOPlatformSerialNumber\" = C02ABC123DEF'",
    "pmset": "echo \"Now drawing from 'AC Power'\"; echo ' lowpowermode 0'",
    "notifyutil": "echo com.apple.system.thermalpressurelevel 0",
    "pgrep": "exit 1",
}
CHEAP = (
    *("python", "macOS", "uv", "MLX's wheel", "MLX's device", "GPU cores", "mains or battery"),
    *("low power mode", "thermal level", "memory pressure", "powermetrics", "replay"),
    *("powermetrics left", "crash reports"),
)


def test_the_file_says_what_was_expected_and_found_and_names_nobody(tmp_path):
    fakes = tmp_path / "bin"
    fake_powermetrics.install(fakes)
    for name, words in ANSWERS.items():
        (fakes / name).write_text(f"#!/bin/sh\n{words}\n")
        (fakes / name).chmod(0o755)
    written = tmp_path / "check.txt"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "mac_check.py", "--out", written, "--only", *CHEAP],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    parts = dict(
        part.removeprefix("## ").split("\n", 1)
        for part in written.read_text(encoding="utf-8").split("\n\n")
    )
    assert tuple(parts) == CHEAP
    assert "found:\n27.0" in parts["macOS"]
    assert "expected: 14 or newer" in parts["macOS"]
    assert "40" in parts["GPU cores"] and "SerialNumber" not in parts["GPU cores"]
    assert " J" in parts["replay"] and "exit code" not in parts["replay"]
    assert parts["powermetrics left"].splitlines()[-1] == "exit code 1"  # pgrep found none
    whole = written.read_text(encoding="utf-8")
    for private in (str(Path.home()), str(ROOT), getpass.getuser(), platform.node()):
        assert private in ("root", "localhost") or private not in whole
