"""Convert a StableLM checkpoint to MLX and GGUF: the same as `edge convert`."""

import sys

from edge.cli.main import run_one

sys.exit(run_one("convert", "convert.py"))
