"""Checkpoints from the Hugging Face hub, kept in huggingface_hub's own cache.

The library says where the hub and the cache are, who is asking, and what a repository holds; it is
never asked for anything while HF_HUB_OFFLINE is set. The listing must come within
HF_HUB_ETAG_TIMEOUT (10 s); what may pass is tried again after each of WAITS_S.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from edge.checkpoints.sources.companions import COMPANIONS, INDEX
from edge.checkpoints.sources.hub_cache import (
    COMMIT,
    CONFIG,
    Cache,
    RemoteFile,
    bytes_there,
    index_names,
    is_there,
    link,
    remember,
)
from edge.checkpoints.sources.hub_transfer import WAITS_S, as_text, fetch, progress_bars
from edge.checkpoints.sources.hub_words import in_words, may_pass, offline
from edge.errors import EdgeError

DEFAULT_REVISION = "main"
SINGLE = "model.safetensors"
SMALL_FILES = (CONFIG, "quantize_config.json", *COMPANIONS)
# Not the checkpoint itself, or the same weights again in another layout or precision.
SECONDARY = re.compile(r"^(consolidated|adapter_)|[._-](fp16|fp32|bf16|f16|f32|non_ema)[.-]")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")  # what git allows, less what leads elsewhere


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
    revision = revision or DEFAULT_REVISION
    return Cache.of(repo).whole(revision) if REVISION.fullmatch(revision) else None


def download(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """Bring a checkpoint into the cache; what is there already is not fetched again.

    Args:
        repo: owner/name.
        revision: a branch, a tag or a commit; None is main.

    Returns:
        The snapshot directory, and the commit's 40 hexadecimal digits.

    Raises:
        EdgeError: the hub does not give it, it holds no weights that can be read safely, the
            disk has no room, or the connection broke off for good.
    """
    from huggingface_hub import constants

    revision = revision or DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        raise EdgeError(f"{revision!r} is no revision of {repo}; name a branch, tag or commit.")
    there = cached(repo, revision)
    if there and (constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision)):
        return there, there.name
    if constants.HF_HUB_OFFLINE:
        raise EdgeError(offline(repo, revision))
    with in_words(repo, revision):
        commit, files = _listing(repo, revision, there)
        if files is None:
            return Cache.of(repo).snapshot(commit), commit
        return _bring(repo, revision, commit, files), commit


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


# --- from the listing to the snapshot


def _listing(
    repo: str, revision: str, there: Path | None
) -> tuple[str, dict[str, RemoteFile] | None]:
    """The commit and its files; if the hub does not answer, the commit of what is `there`."""
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    for wait_s in (*WAITS_S, None):
        try:
            return _ask(repo, revision)
        except (RevisionNotFoundError, HFValidationError):
            raise
        except Exception as error:
            if there is not None:  # as the library does: a checkpoint at hand is better than none
                return there.name, None
            if wait_s is None or not may_pass(error):
                raise
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _ask(repo: str, revision: str) -> tuple[str, dict[str, RemoteFile]]:
    from huggingface_hub import HfApi, constants

    info = HfApi(library_name="stable-edge").model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    files = {}
    for sibling in info.siblings or ():
        oid = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        size_bytes = sibling.lfs.size if sibling.lfs else sibling.size
        # Without them a file can be neither resumed nor checked; oids become file names.
        if size_bytes is None or oid is None or not OID.fullmatch(oid):
            raise ValueError(f"it announces no size and hash of {sibling.rfilename}")
        files[sibling.rfilename] = RemoteFile(sibling.rfilename, oid, size_bytes)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise ValueError("it names no commit")
    return info.sha, files


def _bring(repo: str, revision: str, commit: str, files: dict[str, RemoteFile]) -> Path:
    _check_readable(repo, revision, files)
    cache = Cache.of(repo)
    with progress_bars() as report:
        shards = None
        if INDEX in files:
            _check_room(repo, cache, commit, [files[INDEX]])
            index = fetch(repo, cache, commit, files[INDEX], report)
            shards = _shards(index, repo, files) or None
        wanted = [files[name] for name in choose_files(files, shards)]
        _check_room(repo, cache, commit, wanted)
        for file in wanted:
            fetch(repo, cache, commit, file, report)
    for file in wanted:  # at the end, weights last: a snapshot with weights is a whole one
        link(cache, commit, file)
    remember(cache, revision, commit)
    return cache.snapshot(commit)


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
    shards = index_names(index)
    if shards is None:
        raise EdgeError(f"{INDEX} of {repo} has no weight_map; choose another revision.")
    for name in shards:
        if name not in files or "/" in name or not name.endswith(".safetensors"):
            raise EdgeError(
                f"{INDEX} of {repo} names {name!r}, which is no safetensors file of the "
                f"repository; choose another revision."
            )
    return shards


def _check_room(repo: str, cache: Cache, commit: str, files: list[RemoteFile]) -> None:
    missing = {f.oid: f.size_bytes - bytes_there(cache.partial(f)) for f in files}
    for file in files:
        if is_there(cache, commit, file):
            missing.pop(file.oid, None)
    needed_bytes = sum(missing.values())
    place = cache.folder.absolute()
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if needed_bytes > free_bytes:
        raise EdgeError(
            f"{repo} needs {as_text(needed_bytes)} more, and the disk of {cache.folder.parent} has "
            f"{as_text(free_bytes)} free; make room or set HF_HOME to a folder on another disk."
        )
