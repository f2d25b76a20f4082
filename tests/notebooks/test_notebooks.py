"""The notebooks show what is committed; `python tools/execute_notebooks.py` updates them."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import nbformat
import pytest

from tests.support.profiles import ROOT, failed_profile, make_profile
from tools.execute_notebooks import FOLDER, executed

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000


@cache
def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook):
    """Texts and MIME types of all outputs; pictures depend on the version of matplotlib."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [o.text if "text" in o else o.data.get("text/plain", "") for o in outputs]
    kinds = [sorted(o.get("data", {})) for o in outputs]
    return texts, kinds


@pytest.fixture(scope="module")
def fresh():
    """All notebooks, run in parallel: most of the time is the start of the kernel."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(executed, [FOLDER / f"{name}.ipynb" for name in NAMES])
        return dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_shows_what_is_committed(fresh, name):
    assert shown(fresh[name]) == shown(committed(name))


def test_other_profiles_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(FOLDER)

    def printed(name, profile):
        path = tmp_path / "p.json"
        path.write_text(json.dumps(profile), encoding="utf-8")
        source = "\n".join(cell.source for cell in code_cells(committed(name)))
        source, changed = re.subn(r'Path\("[^"]*"\)', f"Path({str(path)!r})", source)
        assert changed == 1
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    text = printed("quantisation", make_profile(quality=True))
    assert "missing" not in text
    assert re.search(r"^mlx-int4 +4\.50 .* 0\.018$", text, re.MULTILINE)
    for name in ("device_report", "quantisation"):
        text = printed(name, failed_profile())
        assert "the worker was killed" in text or "not measured" in text


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_have_outputs_without_errors_and_private_names(name):
    notebook = committed(name)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert outputs and (name == "table11" or ["image/svg+xml", "text/plain"] in shown(notebook)[1])
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert set(notebook.metadata) == {"kernelspec"}
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not re.search(r"/(?:home|Users|root|tmp|work|private|var)/", text)
    assert str(ROOT) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
