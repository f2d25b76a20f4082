"""From a checkpoint's name to where it lies: `demo`, a path, `synthetic:NAME`, a hub id."""

import re
from dataclasses import dataclass
from pathlib import Path

from edge.convert.sources.synthetic import PREFIX
from edge.errors import EdgeError

DEMO = "demo"
DEMO_PATH = Path(__file__).resolve().parents[2] / "data" / "demo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:.*)?")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies and what to call it."""

    name: str  # good for a folder
    origin: str  # what the user asked for, without the directories of this machine
    path: Path | None  # None for a synthetic one
    revision: str | None = None

    @property
    def synthetic(self) -> bool:
        """Random weights."""
        return self.path is None


def find_source(model: str, revision: str | None = None, layers: int | None = None) -> Source:
    """Resolve `demo`, a directory, a GGUF file, `synthetic:NAME`, or a hub id.

    What is on the hub is downloaded if need be. `layers` are a synthetic model's.
    """
    path = _existing_path(model)
    is_synthetic = model.startswith(PREFIX)
    if revision is not None and (path or model == DEMO or is_synthetic):
        raise EdgeError(f"--revision is for models on the hub, and {model} is not; leave it out.")
    if layers is not None and not is_synthetic:
        raise EdgeError(f"--layers is for synthetic models, and {model} is not; leave it out.")
    if model == DEMO:
        return Source(DEMO, DEMO, DEMO_PATH)
    if is_synthetic:
        name = model.replace(":", "-") + (f"-{layers}-layers" if layers else "")
        return Source(name, model, None)
    if path and path.is_dir():
        return Source(path.resolve().name, path.resolve().name, path)
    if path and path.is_file() and path.suffix.lower() == ".gguf":  # a pipe would be waited for
        return Source(path.stem, path.name, path)
    if path:
        raise EdgeError(
            f"{path} is a file but not a .gguf; name the checkpoint's directory or a GGUF file."
        )
    if HUB_ID.fullmatch(model) and not model.startswith("."):
        return _from_hub(model, revision)
    raise EdgeError(
        f"no checkpoint {model!r}: it is neither 'demo', nor a directory or GGUF file here, nor "
        f"'synthetic:NAME', nor a hub id such as stabilityai/stable-code-3b; check the spelling."
    )


def _existing_path(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None  # Path("") would be this directory
    except (OSError, RuntimeError, ValueError):  # too long, unknown ~user, a zero byte
        return None


def _from_hub(model: str, revision: str | None) -> Source:
    from edge.convert.sources.hub import DEFAULT_REVISION, download  # takes a second to load

    repo, branch = split_revision(model, revision)
    path, commit = download(repo, branch)
    name = repo.split("/")[1]
    if branch is not None and branch != DEFAULT_REVISION:  # each has a folder of its own
        name += "-" + re.sub(r"[^\w.-]", "-", branch)
    return Source(name, repo, path, commit)


def split_revision(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Take `owner/name:branch` apart, text-generation-webui's spelling of a revision."""
    repo, colon, branch = model.partition(":")
    if colon and not branch:
        raise EdgeError(f"{model} names no branch after the colon; give one or leave it out.")
    if branch and revision not in (None, branch):
        raise EdgeError(
            f"{model} asks for the branch {branch} and --revision for {revision}; give only one."
        )
    return repo, branch or revision
