"""Run the notebooks and save their outputs: python tools/execute_notebooks.py [NOTEBOOK...].

Needs the development dependencies. Times and kernel versions, which differ between runs and
machines, are removed. A test compares the committed texts with a new run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook after a run in its folder, as committed."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=120,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,  # prints are split into messages at random
    )
    client.execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
    return notebook


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
