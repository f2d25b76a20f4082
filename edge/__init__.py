"""Run, convert and profile Stable Code 3B and the StableLM family.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
print(edge.generate_text(model, tokenizer, "def fib(n):"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.generate.stream import generate as generate_text
    from edge.generate.stream import stream_generate
    from edge.model.stablelm import Model

__version__ = "0.1.0"
__all__ = ["__version__", "generate_text", "load", "stream_generate"]


def load(path: Path | str) -> tuple[Model, Any]:
    """Load an MLX artefact: the model and its tokenizer (see `edge.model.load.load`)."""
    # Imported here so that `import edge` and every --help stay free of MLX.
    from edge.model.load import load as load_artefact

    return load_artefact(path)


def __getattr__(name: str) -> Any:
    """The generating functions, imported when first asked for and for the same reason."""
    if name not in ("generate_text", "stream_generate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.generate import stream

    return stream.generate if name == "generate_text" else stream.stream_generate
