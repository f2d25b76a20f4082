"""`make mac-check` with fakes of macOS's programs."""

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.support.fake_powermetrics import install
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


def test_the_file_has_expectations_and_findings_but_no_names(tmp_path):
    install(fakes := tmp_path / "bin")
    for name, script in ANSWERS.items():
        (fakes / name).write_text(f"#!/bin/sh\n{script}\n")
        (fakes / name).chmod(0o755)
    written = tmp_path / "check.txt"
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tools" / "mac_check.py", "--out", written),
            *("--path", f"{fakes}:/usr/bin:/bin", "--only", *CHEAP),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    whole = written.read_text(encoding="utf-8")
    parts = dict(part.removeprefix("## ").split("\n", 1) for part in whole.split("\n\n"))
    assert tuple(parts) == CHEAP
    assert "expected: 14 or newer" in parts["macOS"] and "found:\n27.0" in parts["macOS"]
    assert "40" in parts["GPU cores"] and "SerialNumber" not in parts["GPU cores"]
    assert " J" in parts["replay"] and "exit code" not in parts["replay"]
    assert parts["powermetrics left"].splitlines()[-1] == "exit code 1"  # pgrep found none
    for private in (str(Path.home()), str(ROOT), getpass.getuser(), platform.node()):
        assert private in ("root", "localhost") or private not in whole
