"""`--to gguf-mended`: a copy of a GGUF file with its missing keys added and its tensors untouched.

llama.cpp's own StableLM converter leaves out the rotary base, so its files of Stable
Code compute with 10000 instead of 1000000. It leaves out the ids of the fill-in-the-
middle tokens too, which llama.cpp finds by their text only since April 2025.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from edge.convert.artefacts.gguf_tokenizer import SPECIAL_IDS
from edge.convert.artefacts.manifest import (
    BLANK,
    GGUF_KEY,
    file_sha256,
    gguf_sha256,
    write_manifest,
)
from edge.convert.artefacts.recipes import MENDED
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.convert import (
    Artefact,
    Notice,
    Progress,
    check_is_not_source,
    check_room,
    finished,
    lock_folder,
    make_manifest,
)
from edge.convert.sources.gguf import ARCHITECTURE, ROPE_BASE_KEY, check_is_whole_stablelm
from edge.convert.sources.published import (
    STABLE_CODE_ROPE_THETA,
    config_warnings,
    rope_base_looks_wrong,
)
from edge.errors import EdgeError
from edge.formats.files import atomic_write
from edge.formats.gguf import read_gguf

CONTEXT_KEY = "stablelm.context_length"
# What a fill-in-the-middle prompt and a chat need; others change nothing in llama.cpp.
FIXED_IDS = {key: text for key, text in SPECIAL_IDS.items() if key != "padding"}
Keys = Mapping[str, tuple[Any, GGUFValueType]]


def fix_gguf(
    model: str,
    out: Path,
    corrections: Corrections,
    force: bool,
    progress: Progress,
    notice: Notice,
) -> Artefact:
    """Write OUT/gguf-mended.gguf, with the user's `corrections` where the file's values are wrong.

    Raises:
        EdgeError: it is not a GGUF file of a StableLM, lacks nothing, or its rotary base cannot
            be told; or the folder cannot be written.
    """
    source = Path(model).expanduser()
    if not source.is_file():
        raise EdgeError(f"{model} is not a file; {MENDED.name} is made from a GGUF file.")
    base = corrections.rope_theta if corrections.rope_theta is not None else _rope_base(source)
    corrections = Corrections(rope_theta=base, context=corrections.context)
    checkpoint = open_checkpoint(model, corrections=corrections)
    for doubt in config_warnings(checkpoint.config, checkpoint.source.origin, checkpoint.title):
        notice(f"warning: {doubt}")
    target = MENDED.path_in(out)
    check_is_not_source(target, checkpoint)
    with lock_folder(out, notice):
        if target.exists() and not force:
            raise EdgeError(f"{target} is there already; replace it with --force.")
        check_room(out, source.stat().st_size)
        with atomic_write(target) as partial:
            write_fixed(source, partial, corrections, progress)
            digests = {source.name: file_sha256(source)}, {target.name: gguf_sha256(partial)}
            config = checkpoint.config
            note = (
                f"rotary base {config.rope_theta:.0f}, context {config.max_position_embeddings}; "
                f"every tensor is the source's, byte for byte."
            )
            manifest = make_manifest(checkpoint, MENDED, partial, *digests, [note])
            write_manifest(partial, manifest)
    return finished(MENDED, target, kept=False)


def _rope_base(source: Path) -> float:
    """The file's, or what Stable Code needs if it is that and the file has none."""
    checkpoint = open_checkpoint(str(source))
    if rope_base_looks_wrong(checkpoint.config, checkpoint.source.origin, checkpoint.title):
        return STABLE_CODE_ROPE_THETA
    if ROPE_BASE_KEY not in read_gguf(source).keys:
        raise EdgeError(
            f"{source} does not say its rotary base and is not known to be Stable Code; give the "
            f"one it was trained with as --rope-theta (StableLM 3B: 10000)."
        )
    return checkpoint.config.rope_theta


def write_fixed(source: Path, target: Path, corrections: Corrections, progress: Progress) -> None:
    """Copy a whole StableLM GGUF file with what it lacks and room for a manifest."""
    added = _missing_keys(source, corrections)
    if not added:
        raise EdgeError(
            f"{source} has its rotary base and token ids already, so there is nothing to fix; "
            f"use it as it is."
        )
    reader, writer = GGUFReader(source), GGUFWriter(str(target), ARCHITECTURE)
    writer.data_alignment = reader.alignment
    _add_keys(writer, reader, {**added, GGUF_KEY: (BLANK, GGUFValueType.STRING)})
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, tensor in enumerate(reader.tensors):
        progress(MENDED.name, done / len(reader.tensors))
        writer.write_tensor_data(tensor.data)
    writer.close()
    progress(MENDED.name, 1.0)


def _missing_keys(source: Path, corrections: Corrections) -> Keys:
    """The keys to add or replace."""
    rope_theta, context = corrections.rope_theta, corrections.context
    assert rope_theta is not None
    file = read_gguf(source)
    check_is_whole_stablelm(file)
    added: dict[str, tuple[Any, GGUFValueType]] = {}
    base = file.keys.get(ROPE_BASE_KEY)
    if base not in (rope_theta, *struct.unpack("<f", struct.pack("<f", rope_theta))):
        added[ROPE_BASE_KEY] = (rope_theta, GGUFValueType.FLOAT32)
    if context is not None and file.keys.get(CONTEXT_KEY) != context:
        added[CONTEXT_KEY] = (context, GGUFValueType.UINT32)
    tokens = file.keys.get("tokenizer.ggml.tokens")
    ids = {text: i for i, text in enumerate(tokens)} if isinstance(tokens, list) else {}
    for name, text in FIXED_IDS.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if text in ids and key not in file.keys:
            added[key] = (ids[text], GGUFValueType.UINT32)
    return added


def _add_keys(writer: GGUFWriter, reader: GGUFReader, added: Keys) -> None:
    """The added keys, early in the file, before the long lists; then the reader's others."""
    for key, (value, kind) in added.items():
        writer.add_key_value(key, value, kind)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in added:
            continue
        item_kind = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], item_kind)
