"""Run, convert and profile Stable Code 3B and the StableLM family.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.model.stablelm import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Path | str) -> tuple[Model, Any]:
    """Load an MLX artefact: the model and its tokenizer (see `edge.model.load.load`)."""
    # Imported here so that `import edge` and every --help stay free of MLX.
    from edge.model.load import load as load_artefact

    return load_artefact(path)
