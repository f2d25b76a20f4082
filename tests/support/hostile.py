"""To spoil a checkpoint on purpose, and to see that it is refused as it should be."""

import faulthandler
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edge.errors import EdgeError
from tests.support.conversions import make
from tests.support.mutations import WEIGHTS

MADE = ("mlx-fp16", "mlx-int4", "gguf-f16")
UP = "model.layers.0.mlp.up_proj.weight"
# A hang, not slowness: what is refused takes some milliseconds.
LIMIT_S = 60


def run(path: Path, out: Path, names=MADE):
    """Convert; ends the process if that hangs, such as by waiting for a pipe."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    try:
        return make(path, out, *names)
    finally:
        faulthandler.cancel_dump_traceback_later()


def refused(path: Path, words: str, names=MADE) -> str:
    """The sentence; nothing may be left in the output folder, hidden files neither."""
    out = path.parent / "out"
    with pytest.raises(EdgeError, match=words) as caught:
        run(path, out, names)
    assert not out.exists() or list(out.iterdir()) == []
    assert is_sentence(str(caught.value))
    return str(caught.value)


def is_sentence(text: str) -> bool:
    """One line that no terminal acts on, of a length that somebody reads."""
    return text.isprintable() and text.endswith(".") and len(text) < 1500


def edit(path: Path, name: str, change) -> None:
    """Change a JSON file's content."""
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def edit_tensors(path: Path, change) -> None:
    """Change the tensors."""
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)
