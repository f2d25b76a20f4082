"""Checkpoints from the Hugging Face hub, kept in huggingface_hub's own cache.

Files come one after the other in this thread, so that Ctrl-C does not wait for one: the library's
`snapshot_download` has threads that finish theirs first. It is never asked for anything while
HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.convert.sources.companions import COMPANIONS, INDEX
from edge.errors import EdgeError

DEFAULT_REVISION = "main"
CONFIG, SINGLE = "config.json", "model.safetensors"
SMALL_FILES = (CONFIG, "quantize_config.json", *COMPANIONS)
# Not the checkpoint itself, or the same weights again in another layout or precision.
SECONDARY = re.compile(r"^(consolidated|adapter_)|[._-](fp16|fp32|bf16|f16|f32|non_ema)[.-]")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")  # what git allows, less what leads elsewhere
US = "stable-edge"  # as the library tells the hub


def split_revision(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Take `owner/name:branch` apart, text-generation-webui's spelling of a revision.

    Args:
        model: a hub id, with or without a branch.
        revision: what was asked for apart from it.

    Raises:
        EdgeError: both name a revision, and not the same.
    """
    repo, colon, branch = model.partition(":")
    if colon and not branch:
        raise EdgeError(f"{model} names no branch after the colon; give one or leave it out.")
    if branch and revision is not None and branch != revision:
        raise EdgeError(
            f"{model} asks for the branch {branch} and --revision for {revision}; give only one."
        )
    return repo, branch or revision


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot directory if the cache holds the checkpoint; never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    revision = revision or DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        return None
    try:
        config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    except (OSError, ValueError):  # of the library too: no name of a repository
        return None
    if not isinstance(config, str) or not _is_whole(Path(config).parent):
        return None
    return Path(config).parent


def download(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """Bring a checkpoint into the cache; files that are there already are not fetched again.

    Args:
        repo: owner/name.
        revision: a branch, a tag or a commit; None is main.

    Returns:
        The snapshot directory, and the commit's 40 hexadecimal digits.

    Raises:
        EdgeError: the hub does not give it, it holds no weights that can be read safely, the
            disk has no room, or the connection broke off for good.
    """
    from huggingface_hub import constants, errors

    revision = revision or DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        raise EdgeError(f"{revision!r} is no revision of {repo}; name a branch, tag or commit.")
    there = cached(repo, revision)
    if there and (constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision)):
        return there, there.name
    if constants.HF_HUB_OFFLINE:
        raise EdgeError(
            f"{repo} at revision {revision} cannot be fetched from the hub because HF_HUB_OFFLINE "
            f"is set, and the cache holds no whole checkpoint of it; unset it, or give a directory "
            f"with the checkpoint."
        )
    with _in_words(repo, revision):
        try:
            commit, files = _ask(repo, revision)
        except (errors.RevisionNotFoundError, errors.HFValidationError):
            raise
        except Exception:
            if there is None:
                raise
            return there, there.name  # a checkpoint at hand is better than none
        snapshot = _bring(repo, revision, commit, files)
    return snapshot, snapshot.name


def choose_files(names: Collection[str], shards: Collection[str] | None = None) -> list[str]:
    """Which of a repository's files make the checkpoint: companions first, then weights.

    Args:
        names: every file of the repository; those in folders are never taken.
        shards: what the index names; None if there is no index.

    Returns:
        Names; no weights among them if there are no safetensors.
    """
    weights = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if shards is not None:
        weights = sorted(set(shards))
    elif SINGLE in weights:
        weights = [SINGLE]
    else:
        weights = [n for n in weights if not SECONDARY.search(n)] or weights
    index = [INDEX] if shards is not None else []
    return [name for name in SMALL_FILES if name in names] + index + weights


def _ask(repo: str, revision: str) -> tuple[str, dict[str, Any]]:
    """The commit, and its files as the library describes them, by name."""
    from huggingface_hub import HfApi, constants

    info = HfApi(library_name=US).model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if info.sha is None:
        raise ValueError("it names no commit")
    return info.sha, {file.rfilename: file for file in info.siblings or ()}


def _bring(repo: str, revision: str, commit: str, files: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    def fetch(name: str, at: str = commit) -> Path:
        return Path(hf_hub_download(repo, name, revision=at, library_name=US))

    _check_readable(repo, revision, files)
    snapshot = fetch(CONFIG).parent
    shards = _shards(fetch(INDEX), repo, files) if INDEX in files else None
    wanted = choose_files(files, shards or None)
    _check_room(repo, snapshot, [files[name] for name in wanted])
    for name in wanted:
        fetch(name)
    fetch(CONFIG, at=revision)  # the cache notes the branch's commit, now that it is whole
    return snapshot


def _check_readable(repo: str, revision: str, files: Collection[str]) -> None:
    top = [name for name in files if "/" not in name]
    if not any(name.endswith(".safetensors") for name in top):
        pickled = sorted(name for name in top if name.endswith(PICKLES))
        if pickled:
            raise EdgeError(
                f"{repo} holds only pickled weights at revision {revision} ({pickled[0]}), which "
                f"are never opened because unpickling runs whatever code is in them; choose a "
                f"revision or repository with safetensors."
            )
        raise EdgeError(
            f"{repo} holds no *.safetensors at revision {revision}; choose a revision or "
            f"repository in safetensors form."
        )
    if CONFIG not in files:
        raise EdgeError(
            f"{repo} holds no config.json at revision {revision}; choose a whole checkpoint."
        )


def _shards(index: Path, repo: str, files: Collection[str]) -> list[str]:
    shards = _index_names(index)
    if shards is None:
        raise EdgeError(f"{INDEX} of {repo} has no weight_map; choose another revision.")
    for name in shards:
        if name not in files or "/" in name or not name.endswith(".safetensors"):
            raise EdgeError(
                f"{INDEX} of {repo} names {name!r}, which is no safetensors file of the "
                f"repository; choose another revision."
            )
    return shards


def _check_room(repo: str, snapshot: Path, files: Collection[Any]) -> None:
    folder = snapshot.parents[1]
    oids = {(file.lfs.sha256 if file.lfs else file.blob_id): file.size or 0 for file in files}
    needed_bytes = sum(
        size for oid, size in oids.items() if not (folder / "blobs" / str(oid)).exists()
    )
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise EdgeError(
            f"{repo} needs {needed_bytes / 1e9:.1f} GB more, and the disk of {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free; make room or set HF_HOME to a folder on another disk."
        )


def _index_names(index: Path) -> list[str] | None:
    """The files that an index of shards names, None if it is no such index."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return sorted(names) if all(isinstance(name, str) for name in names) else None


def _is_whole(snapshot: Path) -> bool:
    """Whether a snapshot has config, tokenizer and all the weights that its index names.

    Other programs fetch single files, so that a snapshot that exists may lack any.
    """
    if not all((snapshot / name).is_file() for name in (CONFIG, "tokenizer.json")):
        return False
    shards = _index_names(snapshot / INDEX) if (snapshot / INDEX).is_file() else []
    if shards is None:
        return False
    weights = [snapshot / name for name in shards] or list(snapshot.glob("*.safetensors"))
    return bool(weights) and all(path.is_file() for path in weights)


# --- what can go wrong


@contextmanager
def _in_words(repo: str, revision: str) -> Iterator[None]:
    """Turn whatever the library raises into an EdgeError."""
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:  # whatever a network, a proxy or a cache can do
        raise EdgeError(_sentence(error, repo, revision)) from None


def _sentence(error: Exception, repo: str, revision: str) -> str:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its licence on {page}, then run 'hf auth login'."
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return (
            f"the hub has no {repo}, or it is private, and there is no such directory here; "
            f"check the spelling or run 'hf auth login'."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; choose one of those on {page}/tree/main."
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401:
        return f"the hub refuses your token for {repo}; run 'hf auth login' to replace it."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {constants.HF_HUB_CACHE} filled up while {repo} came; make room and run "
            f"the same command again, or set HF_HOME to a folder on another disk."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}), so {repo} has no "
            f"place; set HF_HOME to a folder of yours."
        )
    return (
        f"{repo} cannot be fetched from the hub ({_reason(error)}), and there is no such directory "
        f"here; check the network and run the same command again, or give a directory."
    )


def _reason(error: Exception) -> str:
    """The first line of what a library says, short enough for a sentence."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"it answers with status {status}"
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(" .") if lines else type(error).__name__
