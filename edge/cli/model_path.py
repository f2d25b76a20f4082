"""Find, convert if necessary, and load the model that `edge chat` or `edge complete` runs."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge.convert.artefacts.content import check_name
from edge.device.memory import available_bytes
from edge.errors import EdgeError, printable
from edge.formats.files import DEMO_PATH, user_path, visible
from edge.generate.decode import LlamaSource
from edge.model.follow import is_launched, open_together
from edge.model.load import CONTEXT_TOKENS
from edge.model.memory import Need, check_room
from edge.model.stablelm import Model
from edge.text import size
from edge.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # it imports numpy
    from edge.formats.gguf import GgufFile


class Opened(NamedTuple):
    """A model or GGUF file, its tokenizer, and on MLX the memory that they need."""

    model: Model | LlamaSource
    tokenizer: Tokenizer
    need: Need | None

    @property
    def running_bytes(self) -> int:
        """Bytes of MLX's buffers."""
        return 0 if self.need is None else self.need.running_bytes


def is_gguf_file(model: str) -> bool:
    """True for the path of a GGUF file."""
    path = user_path(model)
    return path.suffix.lower() == ".gguf" and path.is_file()


def gguf_file(model: str) -> Path:
    """Path of a GGUF file, of a split model that of its first part."""
    from edge.formats.gguf import part_paths  # numpy, which an artefact of MLX does not need

    return part_paths(user_path(model))[0]


def runnable(
    model: str, command: str, artefact: str, check: Callable[[Tokenizer], object] | None = None
) -> Path:
    """Directory or GGUF file of a model; of another checkpoint the artefact, made if missing.

    `check` may refuse the tokenizer before that.

    Raises:
        EdgeError: it is a folder of models, or cannot be converted.
    """
    # The demo as it is: as small as its artefact, and looking for one takes longer than a short
    # completion.
    path = DEMO_PATH if model == "demo" else user_path(model)
    if is_gguf_file(model):
        path = gguf_file(model)
    elif path.is_dir():
        _check_is_one(path)
    else:
        return _converted(model, command, artefact, check)
    check_name(path)
    return path


def _check_is_one(path: Path) -> None:
    inside = [p for p in visible(path) if (p / "config.json").is_file()]
    if inside and not (path / "config.json").exists():
        raise EdgeError(
            f"{path} is a folder of models; name one of them: {', '.join(map(str, inside))}."
        )


def open_for(command: str, path: Path, kv_bits: int | None = None) -> Opened:
    """Load a model, a GGUF file in llama.cpp; warnings go to stderr.

    Under mlx.launch this is rank 0, and the others load their parts.
    """
    if path.is_dir():
        model, tokenizer, need = open_together(path, kv_bits, partial(_warn, command))
        return Opened(model, tokenizer, need)
    if is_launched():
        raise EdgeError(f"{path} is a GGUF file, which runs on one device; name an MLX artefact.")
    if kv_bits is not None:
        raise EdgeError(f"--kv-bits is for MLX, and {path} is a GGUF file; leave it out.")
    # Imported here: they load numpy, which an artefact of MLX does not need.
    from edge.device.describe import usable_cores
    from edge.llama_cpp.check import check_file, needed_bytes
    from edge.llama_cpp.session import LlamaSession
    from edge.llama_cpp.vocabulary import read_tokenizer

    file = check_file(path)
    need_bytes = needed_bytes(file, CONTEXT_TOKENS)
    what = f"{path} needs {size(need_bytes)} with a cache for {CONTEXT_TOKENS} tokens"
    shortage = check_room(need_bytes, available_bytes(), what, "choose a smaller file")
    for warning in (*_rope_base_warnings(file), *([shortage] if shortage else [])):
        _warn(command, printable(warning))
    session = LlamaSession(path, CONTEXT_TOKENS, usable_cores())
    return Opened(LlamaSource(session, session.trained_tokens), read_tokenizer(session), None)


def _rope_base_warnings(file: "GgufFile") -> list[str]:
    """Warnings about a Stable Code whose file gives no rotary base."""
    from edge.convert.sources.gguf_config import rope_base_key
    from edge.convert.sources.published import SHAPES, config_warnings

    keys, like = file.keys, SHAPES["stablelm-3b-4e1t"]
    context, title = keys.get("stablelm.context_length"), keys.get("general.name")
    if type(context) is not int or rope_base_key("stablelm") in keys:
        return []
    config = replace(like, max_position_embeddings=context)
    return config_warnings(config, file.path.name, str(title), gives_base=False)


def _converted(
    model: str, command: str, artefact: str, check: Callable[[Tokenizer], object] | None
) -> Path:
    # Imported here: an artefact opens in a third of the time without them.
    from edge.cli.checkpoint import output_folder, progress_bars
    from edge.convert.artefacts.recipes import find_recipe
    from edge.convert.checkpoint import open_checkpoint
    from edge.convert.convert import convert

    checkpoint = open_checkpoint(model)
    warn = partial(_warn, command)
    for warning in checkpoint.warnings:
        warn(warning)
    recipe, out = find_recipe(artefact), output_folder(None, checkpoint.source.name)
    # No progress bar for an artefact that exists and is only checked.
    exists = recipe.path_in(out).exists()
    if check is not None and not exists:
        check(checkpoint.tokenizer)
    with contextlib.nullcontext(lambda *_: None) if exists else progress_bars() as progress:
        return convert(checkpoint, [recipe], out, progress, notice=warn)[0].path


def _warn(command: str, warning: str) -> None:
    print(f"edge {command}: warning: {warning}", file=sys.stderr)
