"""A corrected copy of somebody's GGUF file: missing keys added, tensors untouched.

llama.cpp's own StableLM converter leaves out the rotary base, so its files of Stable
Code compute with 10000 instead of 1000000. It leaves out the ids of the fill-in-the-
middle tokens too, which llama.cpp finds by their text only since April 2025.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from edge.convert.artefacts.gguf_tokenizer import SPECIAL_IDS
from edge.convert.sources.gguf_network import ROPE_BASE_KEY, check_is_whole_stablelm
from edge.errors import EdgeError
from edge.formats.gguf import MAGIC, STRING, GgufFile, pack_key, read_gguf

UINT32, FLOAT32 = 4, 6  # value types
CONTEXT_KEY = "stablelm.context_length"
# What a fill-in-the-middle prompt and a chat need; others are no llama.cpp behaviour.
MENDED_IDS = {key: text for key, text in SPECIAL_IDS.items() if key != "padding"}
PIECE_BYTES = 1 << 22


def mend(
    source: Path,
    target: Path,
    rope_theta: float,
    progress: Callable[[float], None],
    notes: Mapping[str, str] | None = None,
    context: int | None = None,
) -> None:
    """Copy a file with what it lacks.

    Args:
        source: a whole StableLM GGUF file.
        target: the file to make; half of it stays there after a failure.
        rope_theta: the rotary base that the model was trained with.
        progress: told the finished fraction, 0 to 1.
        notes: string keys to add, or to replace, besides.
        context: the number of positions, where the file's is wrong.

    Raises:
        EdgeError: the source is broken, not a StableLM or lacks nothing.
    """
    file = read_gguf(source)
    check_is_whole_stablelm(file)
    corrections = _corrections(file, rope_theta, context)
    if not corrections:
        raise EdgeError(
            f"{source} has its rotary base and token ids already, so there is nothing to mend; "
            f"use it as it is."
        )
    for key, text in (notes or {}).items():
        corrections[key] = pack_key(key, STRING, text)
    with source.open("rb") as old, target.open("wb") as new:
        _write_head(file, corrections, old, new)
        _copy_data(file, old, new, progress)


def _corrections(file: GgufFile, rope_theta: float, context: int | None) -> dict[str, bytes]:
    """The keys to add or replace, as they are stored."""
    if not 0 < rope_theta < 1e30:
        raise EdgeError(
            f"the rotary base {rope_theta!r} is no positive number; Stable Code's is 1000000."
        )
    corrections = {}
    base = file.keys.get(ROPE_BASE_KEY)
    if base not in (rope_theta, *struct.unpack("<f", struct.pack("<f", rope_theta))):
        corrections[ROPE_BASE_KEY] = pack_key(ROPE_BASE_KEY, FLOAT32, rope_theta)
    if context is not None and file.keys.get(CONTEXT_KEY) != context:
        corrections[CONTEXT_KEY] = pack_key(CONTEXT_KEY, UINT32, context)
    tokens = file.keys.get("tokenizer.ggml.tokens")
    ids = {text: i for i, text in enumerate(tokens)} if isinstance(tokens, list) else {}
    for name, text in MENDED_IDS.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if text in ids and key not in file.keys:
            corrections[key] = pack_key(key, UINT32, ids[text])
    return corrections


def _write_head(
    file: GgufFile, corrections: Mapping[str, bytes], old: BinaryIO, new: BinaryIO
) -> None:
    """Everything before the data; the keys that are kept are copied byte for byte."""
    added = corrections.keys() - file.keys.keys()
    counts = (file.version, len(file.tensors), len(file.keys) + len(added))
    new.write(MAGIC + struct.pack("<IQQ", *counts))
    for key in file.keys:
        new.write(corrections[key] if key in corrections else _bytes(old, *file.key_spans[key]))
        if added:  # early in the file, before the long lists
            new.write(b"".join(stored for key, stored in corrections.items() if key in added))
            added = set()
    new.write(_bytes(old, *file.tensor_span))
    new.write(bytes(-new.tell() % file.alignment))


def _copy_data(
    file: GgufFile, old: BinaryIO, new: BinaryIO, progress: Callable[[float], None]
) -> None:
    """The rest of the file, whatever it is: offsets of tensors count from where it begins."""
    old.seek(file.data_begin)
    total = max(1, file.file_bytes - file.data_begin)
    for done, piece in _pieces(old):
        new.write(piece)
        progress(min(1.0, done / total))
    progress(1.0)


def _pieces(old: BinaryIO) -> Iterator[tuple[int, bytes]]:
    done = 0
    while piece := old.read(PIECE_BYTES):
        done += len(piece)
        yield done, piece


def _bytes(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)
