"""Run, convert and profile Stable Code 3B and the StableLM family.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
print(edge.generate_text(model, tokenizer, "def fib(n):"))
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.generate.stream import generate as generate_text
    from edge.generate.stream import stream_generate
    from edge.model.stablelm import Model

__version__ = "0.1.0"
__all__ = ["__version__", "generate_text", "load", "stream_generate"]


class _BeforeMlx:
    """Import hook that runs `linux_cpu.prepare` before numpy or MLX is first imported.

    Any module may be the first to import them, and many commands import neither.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Returns None, so that the next finder is asked."""
        if name in ("numpy", "mlx.core"):
            from edge.linux_cpu import prepare

            prepare(name)


if sys.platform == "linux":
    sys.meta_path.insert(0, _BeforeMlx)


def load(path: Path | str) -> tuple[Model, Any]:
    """Loads an MLX artefact: the model and its tokenizer (see `edge.model.load.load`)."""
    # Imported here, as `import edge` and --help must not import MLX.
    from edge.model.load import load as load_artefact

    return load_artefact(path)


def __getattr__(name: str) -> Any:
    """Functions of `edge.generate.stream`, imported at first use for the same reason."""
    if name not in ("generate_text", "stream_generate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.generate import stream

    return stream.generate if name == "generate_text" else stream.stream_generate
