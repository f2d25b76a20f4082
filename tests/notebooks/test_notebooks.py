"""The notebooks run, and show what is committed; `python tools/execute_notebooks.py` mends it."""

import re
import socket
from functools import cache

import nbformat
import pytest

from tests.support.profiles import ROOT
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


def test_these_are_all():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_shows_what_is_committed(name):
    assert shown(executed(FOLDER / f"{name}.ipynb")) == shown(committed(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_run_in_order_without_complaint(name):
    cells = code_cells(committed(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_code_host_can_show_it(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert all(cell.source.count("\n") < MOST_LINES for cell in committed(name).cells)
    assert set(committed(name).metadata) == {"kernelspec"}


@pytest.mark.parametrize("name", NAMES)
def test_it_names_no_machine_and_no_folder(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|Users|root|tmp|work|private|var)/", text)
    assert str(ROOT) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_the_reports_show_figures():
    kinds = [kind for name in NAMES[:2] for kind in shown(committed(name))[1]]
    assert sum("image/svg+xml" in kind for kind in kinds) >= 4
