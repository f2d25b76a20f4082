"""`--to gguf-mended`: a copy of a GGUF file with missing keys added and the same tensors.

llama.cpp's StableLM converter omits the rotary base, so its files of Stable Code compute with 10000
instead of 1000000. It also omits the ids of the fill-in-the-middle tokens, which llama.cpp finds by
their text since April 2025.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from edge.convert.artefacts.gguf_tokenizer import SPECIAL_IDS
from edge.convert.artefacts.manifest import (
    BLANK,
    GGUF_KEY,
    Corrections,
    file_sha256,
    gguf_sha256,
    write_manifest,
)
from edge.convert.artefacts.recipes import MENDED
from edge.convert.checkpoint import open_checkpoint
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
from edge.convert.sources.gguf import check_is_supported
from edge.convert.sources.gguf_config import rope_base_key
from edge.convert.sources.published import (
    STABLE_CODE_ROPE_THETA,
    config_warnings,
    rope_base_looks_wrong,
)
from edge.errors import EdgeError
from edge.formats.files import atomic_write, user_path
from edge.formats.gguf import read_gguf
from edge.model.config import ModelConfig

ARCHITECTURE = "stablelm"  # llama.cpp has always written a Llama's base
CONTEXT_KEY = f"{ARCHITECTURE}.context_length"
ROPE_BASE_KEY = rope_base_key(ARCHITECTURE)
# Needed for fill-in-the-middle and chat; the others change nothing in llama.cpp.
FIXED_IDS = {key: texts for key, texts in SPECIAL_IDS.items() if key != "padding"}
Keys = Mapping[str, tuple[Any, GGUFValueType]]


def fix_gguf(
    model: str,
    out: Path,
    corrections: Corrections,
    force: bool,
    progress: Progress,
    notice: Notice,
) -> Artefact:
    """Write OUT/gguf-mended.gguf; the user's `corrections` replace the file's values.

    An EdgeError if it is not a GGUF file of a StableLM, lacks nothing, or its rotary base is
    unknown; or if the folder cannot be written.
    """
    source = user_path(model)
    if not source.is_file():
        raise EdgeError(f"{model} is not a file; give a GGUF file to make {MENDED.name}.")
    file = read_gguf(source)
    check_is_supported(file, (ARCHITECTURE,))
    if file.keys.get("split.count", 1) not in (0, 1):
        raise EdgeError(
            f"{source} is a part of a split model; join its parts with "
            f"'llama-gguf-split --merge' first."
        )
    if corrections.rope_theta is None:
        corrections = replace(corrections, rope_theta=_rope_base(source))
    checkpoint = open_checkpoint(model, corrections=corrections)
    for warning in config_warnings(checkpoint.config, checkpoint.source.origin, checkpoint.title):
        notice(f"warning: {warning}")
    target = MENDED.path_in(out)
    check_is_not_source(target, checkpoint)
    with lock_folder(out, notice):
        if target.exists() and not force:
            raise EdgeError(f"{target} exists already; replace it with --force.")
        check_room(out, source.stat().st_size)
        with atomic_write(target) as partial:
            config = checkpoint.config
            _write_fixed(source, partial, config, progress)
            digests = {source.name: file_sha256(source)}, {target.name: gguf_sha256(partial)}
            note = (
                f"rotary base {config.rope_theta:.0f}, context {config.max_position_embeddings}; "
                f"every tensor is the source's, byte for byte."
            )
            manifest = make_manifest(checkpoint, MENDED, partial, *digests, [note])
            write_manifest(partial, manifest)
    return finished(MENDED, target, kept=False)


def _rope_base(source: Path) -> float:
    """The file's rotary base, or Stable Code's if the model is that and the file's is wrong."""
    checkpoint = open_checkpoint(str(source))
    if rope_base_looks_wrong(checkpoint.config, checkpoint.source.origin, checkpoint.title):
        return STABLE_CODE_ROPE_THETA
    if ROPE_BASE_KEY not in read_gguf(source).keys:
        raise EdgeError(
            f"{source} has no rotary base and is not known to be Stable Code; give the one it was "
            f"trained with as --rope-theta (StableLM 3B: 10000)."
        )
    return checkpoint.config.rope_theta


def _write_fixed(source: Path, target: Path, config: ModelConfig, progress: Progress) -> None:
    """Copy a StableLM GGUF file with its missing keys and space for a manifest."""
    added = _missing_keys(source, config)
    if not added:
        raise EdgeError(
            f"{source} already has its rotary base and token ids, so there is nothing to fix; "
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


def _missing_keys(source: Path, config: ModelConfig) -> Keys:
    """The keys to add or replace."""
    keys = read_gguf(source).keys
    added: dict[str, tuple[Any, GGUFValueType]] = {}
    if keys.get(ROPE_BASE_KEY) not in (config.rope_theta, float(np.float32(config.rope_theta))):
        added[ROPE_BASE_KEY] = (config.rope_theta, GGUFValueType.FLOAT32)
    if keys.get(CONTEXT_KEY) != config.max_position_embeddings:
        added[CONTEXT_KEY] = (config.max_position_embeddings, GGUFValueType.UINT32)
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)  # else the checkpoint would not have opened
    ids = {text: i for i, text in enumerate(tokens)}
    for name, texts in FIXED_IDS.items():
        key = f"tokenizer.ggml.{name}_token_id"
        found = [ids[text] for text in texts if text in ids]
        if found and key not in keys:
            added[key] = (found[0], GGUFValueType.UINT32)
    return added


def _add_keys(writer: GGUFWriter, reader: GGUFReader, added: Keys) -> None:
    """Write the added keys before the reader's others, which include long lists."""
    for key, (value, kind) in added.items():
        writer.add_key_value(key, value, kind)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in added:
            continue
        item_kind = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], item_kind)
