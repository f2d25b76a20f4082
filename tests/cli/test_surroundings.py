"""Every command where stdout, the home directory, the locale or the memory are not as usual."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from edge.cli import main as entry
from tests.cli.test_cli import ENVIRONMENT, ROOT

PROFILE = str(next((ROOT / "profiles" / "measured").glob("*.json")))
COMMANDS = {
    "convert": ("demo", "--list"),
    "bench": ("--compare", PROFILE, PROFILE),
    "chat": ("-p", "import os", "-n", "2"),
    "complete": ("--prefix", "import os\nimport ", "-n", "2", "--temperature", "0"),
    "eval": (
        "demo",
        "--rows",
        "mlx-int4",
        "--reference",
        "none",
        "--tokens",
        "200",
        "--window",
        "64",
    ),
    "report": ("--devices", str(ROOT / "profiles" / "measured")),
    "power": ("--help",),
    "doctor": ("--bandwidth-gb-s", "10"),
    "--version": (),
}
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
HOME = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
UNKNOWN_ID = 54321  # of a user in no file, as in a container


def is_open(path):
    return all(folder.stat().st_mode & 0o5 == 0o5 for folder in path.resolve().parents)


def become_unknown():
    if os.getuid() == 0 and is_open(ROOT / "edge") and is_open(Path(sys.executable)):
        os.setgid(UNKNOWN_ID)
        os.setuid(UNKNOWN_ID)


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (150_000_000, 150_000_000))


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:  # those of pytest are closed to other users
        Path(name).chmod(0o777)
        yield name


def run(name, folder, redirection="", environment=ENVIRONMENT, prepare=None):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "edge", name,
         *COMMANDS[name]],
        cwd=folder, env=environment, preexec_fn=prepare, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "stdout is closed"), (">/dev/full", "stdout cannot be written (No space left")],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_or_full_stdout_is_one_sentence(name, redirection, reason, folder):
    code, _, errors = run(name, folder, redirection)
    assert (code, errors.count("\n")) == (1, 1) and f": {reason}" in errors


@pytest.mark.parametrize("name", COMMANDS)
def test_no_home_directory_and_an_ascii_locale(name, folder):
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in HOME} | ASCII
    code, shown, errors = run(name, folder, environment=environment, prepare=become_unknown)
    assert code == 0 and shown, errors


@pytest.mark.parametrize("name", ["convert", "chat"])
def test_too_little_memory_for_the_libraries(name, folder):
    code, shown, errors = run(name, folder, prepare=limit_memory)
    assert code != 0 and not shown, errors


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "there is not enough memory"),
        (ImportError("numpy\nlib.so: failed to map"), "a library cannot be loaded (lib.so: failed"),
        (OSError(28, "No space left on device", "a\x1bb"), "No space left on device: 'a\\x1bb'"),
    ],
)
def test_errors_of_the_system_are_one_sentence(error, sentence, monkeypatch, command):
    monkeypatch.setattr(entry, "import_module", Mock(side_effect=error))
    assert sentence in command.refused("chat")
