"""From a checkpoint's name to its directory: `demo`, a path, or a hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError

DEMO = "demo"
DEMO_PATH = Path(__file__).resolve().parents[2] / "demo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
HUB_FILES = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "*.safetensors",
    "*.safetensors.index.json",
)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies and what to call it.

    `name` is short and good for a folder; `origin` is what the user asked for, without
    the directories of this machine.
    """

    name: str
    origin: str
    path: Path
    revision: str | None = None


def find_source(model: str) -> Source:
    """Resolve `demo`, an existing directory, or a hub id (downloaded if need be).

    Raises:
        EdgeError: it is none of these, or the hub does not give it.
    """
    if model == DEMO:
        return Source(DEMO, DEMO, DEMO_PATH)
    kind = _kind_of_path(model)
    if kind == "directory":
        path = Path(model).expanduser()
        return Source(path.resolve().name, path.resolve().name, path)
    if kind == "file":
        raise EdgeError(f"{model} is a file; name the checkpoint's directory instead.")
    if HUB_ID.fullmatch(model) and not model.startswith("."):
        return _download(model)
    raise EdgeError(
        f"no checkpoint {model!r}: it is neither 'demo', nor a directory here, nor a hub id "
        f"such as stabilityai/stable-code-3b; check the spelling."
    )


def _kind_of_path(model: str) -> str | None:
    """What lies at the path, None if nothing does or it is no path."""
    try:
        path = Path(model).expanduser()
        if not model or not path.exists():  # Path("") would be this directory
            return None
        return "directory" if path.is_dir() else "file"
    except (OSError, RuntimeError, ValueError):  # too long, unknown ~user, a zero byte
        return None


def _download(repo: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(repo, allow_patterns=list(HUB_FILES)))
    except GatedRepoError:
        raise EdgeError(
            f"{repo} is gated: accept its licence on its hub page, then run 'hf auth login'."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise EdgeError(
            f"the hub has no {repo}, or it is private, and there is no such directory here; "
            f"check the spelling or run 'hf auth login'."
        ) from None
    except Exception as error:  # whatever a network, a proxy or a cache can do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EdgeError(
            f"{repo} cannot be fetched from the hub ({reason}), and there is no such "
            f"directory here; check the network, or give a directory."
        ) from None
    return Source(repo.split("/")[1], repo, path, path.name)
