"""The bundled sample of code is what its README says, and stays that way."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import edge

ROOT = Path(edge.__file__).resolve().parent / "data" / "corpus"
FILES = sorted(path for path in ROOT.iterdir() if path.is_file() and path.name != "README.md")
PYTHON = [path for path in FILES if path.suffix == ".py"]
LISTED = re.compile(r"^\| (\S+\.\w+) \| \S+ \| (\d+) \|$", re.MULTILINE)
LEAST_LETTERS = 20
MOST_SHARED = 0.1


def telling_lines(text):
    """Lines long enough to say something; imports are everybody's."""
    lines = {line.strip() for line in text.splitlines()}
    return {
        line
        for line in lines
        if len(line) > LEAST_LETTERS and not line.startswith(("import ", "from "))
    }


@pytest.fixture(scope="module")
def standard_library():
    """Every telling line of the interpreter's own modules, packages of two levels included."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = [*folder.glob("*.py"), *folder.glob("[a-z]*/*.py")]
    sources = [path for path in found if path.parent.name not in ("test", "site-packages")]
    assert len(sources) > 300
    lines = set()
    for path in sources:
        lines |= telling_lines(path.read_text(encoding="utf-8", errors="replace"))
    return lines


def test_its_size_and_languages():
    assert 80_000 <= sum(path.stat().st_size for path in FILES) <= 150_000
    assert len({path.suffix for path in FILES}) >= 8
    assert len(PYTHON) >= 5


def test_the_readme_lists_every_file_with_its_size():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = {name: int(size) for name, size in LISTED.findall(text)}
    assert listed == {path.name: path.stat().st_size for path in FILES}
    assert f"| total | | {sum(listed.values())} |" in text
    assert "Apache-2.0" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_plain_text(path):
    data = path.read_bytes()
    text = data.decode("utf-8")
    assert 3_000 <= len(data) <= 10_000
    assert "\r" not in text and "\0" not in text and not text.startswith("\ufeff")
    assert text.endswith("\n") and not text.endswith("\n\n")


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_python_compiles(path):
    compile(path.read_text(encoding="utf-8"), path.name, "exec", dont_inherit=True)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_python_is_none_of_the_standard_library(path, standard_library):
    lines = telling_lines(path.read_text(encoding="utf-8"))
    assert len(lines) > 50
    assert len(lines & standard_library) < MOST_SHARED * len(lines)


def test_the_comparison_would_notice_a_copy(standard_library):
    import textwrap

    lines = telling_lines(Path(textwrap.__file__).read_text(encoding="utf-8"))
    assert len(lines & standard_library) > MOST_SHARED * len(lines)


def test_edge_does_not_lint_its_sample():
    command = [sys.executable, "-m", "ruff", "check", "--force-exclude", *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "No Python files found" in done.stderr
