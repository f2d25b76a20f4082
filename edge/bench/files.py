"""Existing MLX directories and GGUF files, measured as they are: nothing is converted."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from edge.bench.engines.engine import LLAMA_CPP, MLX_LM
from edge.bench.plan import UNLIMITED, Target
from edge.convert.artefacts.content import (
    Packings,
    Tensors,
    check_name,
    contradiction,
    gguf_precision,
    mlx_precision,
    packings,
    read_mlx,
)
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES, Recipe
from edge.convert.sources.names import DEMO, SMOLLM2, existing_path
from edge.convert.targets import file_bytes
from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.formats.folder import HUB_FOLDER, inside
from edge.formats.gguf import read_model, unsplit_name
from edge.formats.safetensors import FLOATS
from edge.model.config import MODEL_TYPES
from edge.profile.foreign import ENDING
from edge.profile.profile import ModelInfo

# Name of the model of a run over files of several.
SEVERAL = "several models"
CONFIG = "config.json"
VOCAB_KEYS = ("vocab_size", "padded_vocab_size", "n_vocab")
CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length"),
    *("max_sequence_length", "seq_length", "model_max_length"),
)
TOKEN_TABLE = re.compile(r"(?:embed_tokens|wte|tok_embeddings|word_embeddings|embed_in)\.weight$")
# Tensors of rope scaling, which are not weights.
ROPE_PREFIX = "rope_f"


def is_measured_as_is(model: str) -> bool:
    """True for a GGUF file, and for a directory with a quantised or foreign network."""
    path = None if model in (DEMO, SMOLLM2) else existing_path(model)
    if path is None or not path.is_dir():
        return path is not None and path.suffix.lower() == ".gguf"
    if not (path / CONFIG).is_file():
        return False
    raw = read_json_object(inside(path, CONFIG))
    kind = raw.get("model_type")
    return "quantization" in raw or (isinstance(kind, str) and kind not in MODEL_TYPES)


def open_files(models: Sequence[str]) -> list[Target]:
    """Reads the headers of files and directories, each once; an EdgeError for a damaged one."""
    targets: dict[Path, Target] = {}
    for model in models:
        path = existing_path(model)
        if path is None:
            raise EdgeError(
                f"{model} is not a GGUF file or MLX directory, as each of several models must be; "
                f"give it alone to convert it."
            )
        check_name(path)
        target = _directory(path) if path.is_dir() else _gguf_file(path)
        targets.setdefault(Path(target.path).resolve(), target)
    return _distinct([*targets.values()])


def common_model(targets: Sequence[Target]) -> ModelInfo:
    models = [target.model for target in targets]
    if len({model.name for model in models}) == 1:
        return models[0]
    return ModelInfo(SEVERAL, synthetic=any(model.synthetic for model in models))


def _distinct(targets: Sequence[Target]) -> list[Target]:
    """Targets of one name get that of their model too, or a number."""
    names = Counter(target.recipe.name for target in targets)
    seen: Counter[str] = Counter()
    found = []
    for target in targets:
        name = target.recipe.name
        if names[name] > 1:
            name = f"{name} ({target.model.name})"
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} {seen[name]}"
        found.append(replace(target, recipe=replace(target.recipe, name=name)))
    return found


def _gguf_file(path: Path) -> Target:
    file = read_model(path)
    keys, architecture = file.keys, file.keys.get("general.architecture")
    tokens = keys.get("tokenizer.ggml.tokens")
    tables = (t.shape[0] for t in file.tensors if t.name == "token_embd.weight")
    count = len(tokens) if isinstance(tokens, list) else keys.get(f"{architecture}.vocab_size")
    weights = (t for t in file.tensors if not t.name.startswith(ROPE_PREFIX))
    return _target(
        file.path,  # the first part of a split model, with which llama.cpp finds the others
        Recipe(unsplit_name(path), "GGUF", gguf_precision(file)),
        LLAMA_CPP,
        vocab_size=_vocab_size(path, count, next(tables, None)),
        context_tokens=_count(keys.get(f"{architecture}.context_length")) or UNLIMITED,
        parameters=sum(prod(tensor.shape) for tensor in weights),
        data_bytes=sum(tensor.data_bytes for tensor in file.tensors),
    )


def _directory(path: Path) -> Target:
    raw = read_json_object(inside(path, CONFIG))
    inner = raw.get("text_config")  # of the language model in one for images or sound
    config = {**raw, **inner} if isinstance(inner, Mapping) else raw
    quantisation, tensors = read_mlx(path)
    packed = packings(quantisation, tensors)
    tables = (t.shape[0] for name, t in tensors.items() if TOKEN_TABLE.search(name))
    name = path.resolve().name
    if path.resolve().parent.name == "snapshots":  # of the hub's cache, named after a commit
        repository = path.resolve().parent.parent.name
        name = repository.removeprefix(HUB_FOLDER).rpartition("--")[2]
    return _target(
        path,
        Recipe(name, "MLX", mlx_precision(quantisation, tensors, packed)),
        MLX_LM,
        vocab_size=_vocab_size(path, _first_count(config, VOCAB_KEYS), max(tables, default=None)),
        context_tokens=_first_count(config, CONTEXT_KEYS) or UNLIMITED,
        parameters=_mlx_parameters(tensors, packed),
        data_bytes=sum(tensor.data_bytes for tensor in tensors.values()),
    )


def _mlx_parameters(tensors: Tensors, packed: Packings) -> int:
    """Floats, and the numbers that quantised matrices pack."""
    total = packed.total()
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        is_packed = f"{stem}.scales" in tensors and part in ("weight", "scales", "biases")
        if tensor.dtype in FLOATS and not is_packed:
            total += prod(tensor.shape)
    return total


def _target(
    path: Path,
    recipe: Recipe,
    engine: str,
    vocab_size: int,
    context_tokens: int,
    parameters: int,
    data_bytes: int,
) -> Target:
    manifest = read_manifest(path)
    model = ModelInfo(
        name=ENDING.sub("", recipe.name) or recipe.name,
        source=path.name if path.is_file() else recipe.name,
        parameters=parameters,
    )
    if manifest is not None:  # an artefact of edge says what it was made from
        name = manifest.source.rpartition("/")[2].removesuffix(".gguf").replace(":", "-")
        model = ModelInfo(name, manifest.source, manifest.revision, parameters, manifest.synthetic)
        known = RECIPES.get(manifest.artefact)
        if known and not contradiction(path, known, manifest):
            recipe = replace(recipe, precision=known.precision)
    return Target(
        recipe,
        str(path),
        (engine,),
        model,
        vocab_size,
        context_tokens,
        as_is=True,
        file_bytes=file_bytes(path),
        bits_per_weight=8 * data_bytes / parameters if parameters else 0.0,
    )


def _vocab_size(path: Path, count: Any, rows: int | None) -> int:
    """Token ids that exist; beyond the table's rows MLX reads other memory."""
    found = [n for n in (_count(count), rows) if n]
    if not found:
        raise EdgeError(f"{path} does not say how many tokens it has; use another file.")
    return min(found)


def _first_count(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    return next((n for key in keys if (n := _count(config.get(key)))), None)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= UNLIMITED else None
