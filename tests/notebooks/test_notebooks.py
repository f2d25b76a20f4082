"""The notebooks run, and show what is committed; `python tools/execute_notebooks.py` mends it."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import nbformat
import pytest

from edge.report.plots import PLOTS
from tests.support.profiles import ROOT, failed_profile, mac_profile
from tools.execute_notebooks import FOLDER, executed

NAMES = ("device_report", "quantisation", "table11")
MOST_BYTES = 300_000
MOST_LINES = 20


@cache
def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook):
    """Text of every output, and which kinds of pictures; pictures may vary with their library."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [o.text if "text" in o else o.data.get("text/plain", "") for o in outputs]
    kinds = [sorted(o.get("data", {})) for o in outputs]
    return texts, kinds


@pytest.fixture(scope="module")
def fresh():
    """All of them run, beside each other: most of a run is the start of its kernel."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(executed, [FOLDER / f"{name}.ipynb" for name in NAMES])
        return dict(zip(NAMES, found, strict=True))


def test_the_readme_links_them_all():
    links = re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", (ROOT / "README.md").read_text())
    assert sorted(set(links)) == list(NAMES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_shows_what_is_committed(fresh, name):
    assert shown(fresh[name]) == shown(committed(name))


def ran_on(name, profile, tmp_path, capsys, monkeypatch):
    """What a notebook prints about another profile, and its names; pictures are not kept."""
    (tmp_path / "p.json").write_text(json.dumps(profile), encoding="utf-8")
    monkeypatch.chdir(FOLDER)
    names = {"__name__": "__main__"}
    for cell in code_cells(committed(name)):
        source, changed = re.subn(
            r'Path\("[^"]*"\)', f"Path({str(tmp_path / 'p.json')!r})", cell.source
        )
        exec(compile(source, name, "exec"), names)
        assert changed == ("= read(" in source)
    return capsys.readouterr().out, names


def test_other_profiles_are_shown_with_everything_and_without_figures(
    tmp_path, capsys, monkeypatch
):
    full = mac_profile(quality=True)
    out, names = ran_on("device_report", full, tmp_path, capsys, monkeypatch)
    assert "also shown: energy, precision, depth, power, roofline" in out
    assert len(names["plots"]) == len(PLOTS)
    out, _ = ran_on("quantisation", full, tmp_path, capsys, monkeypatch)
    assert "missing" not in out
    assert re.search(r"^mlx-int4 +4\.50 .* 0\.018$", out, re.MULTILINE)
    for name in ("device_report", "quantisation"):
        out, _ = ran_on(name, failed_profile(), tmp_path, capsys, monkeypatch)
        assert "the worker was killed" in out or "not measured" in out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_can_be_shown_and_names_nobody(name):
    notebook = committed(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    figures = sum("image/svg+xml" in kinds for kinds in shown(notebook)[1])
    assert outputs and (figures or name == "table11")
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert all(cell.source.count("\n") < MOST_LINES for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec"}
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(?:home|Users|root|tmp|work|private|var)/", text)
    assert str(ROOT) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
