"""Times the converter against mlx_lm.convert on the same checkpoint, as whole commands.

    python benchmarks/convert.py                   # four layers of Stable Code 3B's width
    python benchmarks/convert.py --layers 32 --ours-only

Writes a synthetic bfloat16 checkpoint, then runs every command once per round, in rotating
order. Prints medians, ratios and peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apart import Used, in_turn, run_process

from edge.convert.artefacts.manifest import Corrections
from edge.convert.checkpoint import open_checkpoint
from edge.convert.stream import Block, blocks
from edge.formats.safetensors import Planned, ShardWriter
from edge.model.tensors import expected_shapes

PEER = (sys.executable, "-m", "mlx_lm", "convert")
OURS = (sys.executable, "-m", "edge", "convert")


def commands(source: Path, out: Path) -> dict[str, Sequence[str]]:
    """The timed commands by name; all write to the folder `out`."""
    ours = [*OURS, str(source), "--out", str(out), "--to"]
    peer = [*PEER, "--hf-path", str(source), "--mlx-path", str(out / "peer"), "--dtype", "float16"]
    quantised = ["-q", "--q-bits", "4", "--q-group-size", "64"]
    return {
        "edge fp16": [*ours, "mlx-fp16"],
        "mlx_lm fp16": peer,
        "edge int4": [*ours, "mlx-int4"],
        "mlx_lm int4": [*peer, *quantised],
        "edge fp16 + int4": [*ours, "mlx-fp16", "mlx-int4"],
    }


def write_source(name: str, layers: int, folder: Path) -> None:
    """A synthetic model as a Hugging Face directory in bfloat16."""
    checkpoint = open_checkpoint(f"synthetic:{name}", corrections=Corrections(layers=layers))
    shapes = expected_shapes(checkpoint.config)
    folder.mkdir()
    writer = ShardWriter(folder, [Planned(n, "BF16", s) for n, s in shapes.items()])
    for tensor, shape in shapes.items():
        for start, stop in blocks(shape):
            rows = checkpoint.weights.read(tensor, start, stop)
            writer.write(Block(tensor, rows).rounded("BF16"))
    writer.finish()
    config = {**checkpoint.config.to_dict(), "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for file, content in checkpoint.tokenizer_files.items():
        (folder / file).write_bytes(content)


def run(command: Sequence[str], out: Path) -> Used:
    """Runs a command after emptying its folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return run_process(command, os.devnull, os.environ)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stable-code-3b", help="a published shape")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="leave mlx_lm out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        write_source(args.model, args.layers, source)
        timed = commands(source, out)
        names = [n for n in timed if not (args.ours_only and n.startswith("mlx_lm"))]
        calls = {name: partial(run, timed[name], out) for name in names}
        results = in_turn(calls, args.rounds, warmups=0)
    print(f"{args.model}, {args.layers} layers, bfloat16 source, {args.rounds} rounds")
    for name, measured in results.items():
        seconds = [used.wall_s for used in measured]
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        peak = max(used.peak_gb for used in measured)
        print(f"{name:<18} {statistics.median(seconds):6.1f} s ({spread}), peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
