"""Run, convert and profile Stable Code 3B and the StableLM family.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
print(edge.generate_text(model, tokenizer, "def fib(n):"))
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.generate.stream import generate as generate_text
    from edge.generate.stream import stream_generate
    from edge.model.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "generate_text", "load", "stream_generate"]
FUNCTIONS = {
    "load": ("edge.model.load", "load"),
    "generate_text": ("edge.generate.stream", "generate"),
    "stream_generate": ("edge.generate.stream", "stream_generate"),
}


class _BeforeMlx:
    """Import hook that runs `linux_cpu.prepare` before numpy or MLX is first imported."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in ("numpy", "mlx.core"):
            from edge.linux_cpu import prepare

            prepare(name)


if sys.platform == "linux":
    sys.meta_path.insert(0, _BeforeMlx)


def __getattr__(name: str) -> Any:
    """Functions imported at first use: `import edge` and --help must not import MLX."""
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = FUNCTIONS[name]
    return getattr(import_module(module), function)
