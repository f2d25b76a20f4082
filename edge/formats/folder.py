"""A model's directory: which of its files hold the weights, and no file outside it is read.

The rule for weights is that of transformers and mlx-lm where these agree. Where they differ (a
second model in the same directory: mlx-lm reads all model*.safetensors, transformers one), the
directory is refused.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import read_json_object, unreadable, visible
from edge.formats.safetensors import INDEX, SINGLE, StoredTensor, read_headers

HUB_FOLDER = "models--"  # prefix of a repository's folder in the hub's cache
SUFFIX = ".safetensors"
# Copied to artefacts if present; none is a file of code.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
    "generation_config.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Adapters, and the same weights in another layout: other programs ignore them as well.
IGNORED = re.compile(r"^(consolidated|adapters?[._])|_adapters?\.")
# The same weights in another precision, which transformers reads only if asked.
VARIANT = re.compile(r"[._-](fp16|fp32|bf16|f16|f32|non_ema)[.-]")
PART = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.safetensors")


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model's directory by name, each within its file."""
    return read_headers(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model; an EdgeError if one is missing or of another model."""
    names = [path.name for path in visible(folder)]
    chosen = choose_weights(names, listed_files(folder), str(folder))
    if missing := sorted(set(chosen) - set(names)):
        raise EdgeError(f"{folder} has no {missing[0]}, which {INDEX} lists; download it again.")
    others = [name for name in _candidates(names) if name not in chosen]
    for name in others:
        if not VARIANT.search(name):
            raise EdgeError(
                f"{folder / name} does not belong to the model beside it ({chosen[0]}); move it to "
                f"another folder."
            )
    return [inside(folder, name) for name in chosen]


def choose_weights(names: Collection[str], listed: Sequence[str], where: str) -> list[str]:
    """Those of a directory's files that hold the model; `listed` are those of its index.

    An EdgeError if no file does, or it is not clear which.
    """
    candidates = _candidates(names)
    is_of_another_build = SINGLE in names and not set(listed) & set(names)
    if listed and not is_of_another_build:
        return list(listed)
    if SINGLE in candidates:
        return [SINGLE]
    found = [name for name in candidates if not VARIANT.search(name)] or candidates
    if not found:
        others = [name for name in sorted(names) if name.endswith(SUFFIX)]
        pickles = [name for name in sorted(names) if name.endswith(PICKLES)]
        held = f"only {pickles[0]}, a pickle, which can run any code" if pickles else "no weights"
        held = f"no weights but {others[0]}, which are not a whole model" if others else held
        raise EdgeError(f"{where} holds {held}; choose a checkpoint with *{SUFFIX}.")
    if not _are_whole(found):
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        raise EdgeError(
            f"{where} holds {', '.join(found[:2])}{more} but no {INDEX}, and these names are not "
            f"those of one whole model; keep the files of one, or download it again."
        )
    return found


def listed_files(folder: Path) -> list[str]:
    """The names in the index; empty without one."""
    index = inside(folder, INDEX)
    if not index.exists():
        return []
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise EdgeError(f"{index} has no weight_map; download it again.")
    for name in names.values():
        plain = name.endswith(SUFFIX) and name.isprintable()
        if not plain or Path(name).name != name:
            raise EdgeError(f"{index} points outside its directory ({name!r}); do not use it.")
    return sorted(set(names.values()))


def inside(folder: Path, name: str) -> Path:
    """A file of the directory; an EdgeError if it is a link that leads out of it."""
    file = folder / name
    if not file.is_symlink():
        return file
    try:
        home, target = folder.resolve(), file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        if isinstance(error, PermissionError):
            raise unreadable(file, error) from None
        reason = getattr(error, "strerror", None) or error
        raise EdgeError(f"{file} cannot be read ({reason}); download it again.") from None
    repository = home.parent.parent
    if home.parent.name == "snapshots" and repository.name.startswith(HUB_FOLDER):
        home = repository
    if not target.is_relative_to(home):
        raise EdgeError(
            f"{file} is a link that leads out of its directory; replace it with the file itself."
        )
    return file


def _candidates(names: Collection[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if name.endswith(SUFFIX) and "/" not in name and name[0] != "." and not IGNORED.search(name)
    )


def _are_whole(names: Sequence[str]) -> bool:
    """True for one file, and for all parts of one model."""
    match = PART.fullmatch(names[0])
    if match is None:
        return len(names) == 1
    stem, count = match[1], int(match[2])
    parts = [f"{stem}-{part:05d}-of-{count:05d}{SUFFIX}" for part in range(1, count + 1)]
    return list(names) == parts
