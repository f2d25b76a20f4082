"""Checkpoints from the Hugging Face hub, kept in huggingface_hub's cache.

Files are downloaded one after the other in this thread, so that Ctrl-C takes effect at once; the
threads of `snapshot_download` would finish their files first.
"""

import re
import sys
from collections.abc import Collection, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache

from edge.convert.sources.directory import SMALL_FILES, TOKENIZER
from edge.errors import EdgeError
from edge.formats.files import check_free
from edge.formats.folder import choose_weights, listed_files, weight_files
from edge.formats.safetensors import INDEX
from edge.stdout import unfiltered

DEFAULT_REVISION = "main"
CONFIG = "config.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")  # what git allows, without ".."
USER_AGENT = "stable-edge"


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot directory of a complete checkpoint in the cache; never uses the network."""
    revision = revision or DEFAULT_REVISION
    try:
        config = try_to_load_from_cache(repo, CONFIG, revision=revision)
        if not REVISION.fullmatch(revision) or not isinstance(config, str):
            return None
        snapshot = Path(config).parent
        needed = [CONFIG, TOKENIZER, *(file.name for file in weight_files(snapshot))]
        return snapshot if all((snapshot / name).is_file() for name in needed) else None
    except (OSError, ValueError, EdgeError):  # ValueError: not the name of a repository
        return None


def download(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """Snapshot directory and commit (40 digits) of owner/name, downloaded unless cached."""
    revision = revision or DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        raise EdgeError(f"{revision!r} is not a revision of {repo}; name a branch, tag or commit.")
    snapshot = cached(repo, revision)
    if snapshot and COMMIT.fullmatch(revision):
        return snapshot, snapshot.name
    commit = None
    try:
        commit, files = _list_files(repo, revision)
        snapshot = _download_files(repo, revision, commit, files)
    except EdgeError:
        raise
    except Exception as error:  # of the network, a proxy or the cache
        wrong_name = isinstance(error, errors.RevisionNotFoundError | errors.HFValidationError)
        if snapshot is None or commit or wrong_name:  # else the cached checkpoint is used
            raise EdgeError(_sentence(error, repo, revision)) from None
    return snapshot, snapshot.name


def _list_files(repo: str, revision: str) -> tuple[str, dict[str, Any]]:
    """The commit, and the library's description of its files by name."""
    info = HfApi(library_name=USER_AGENT).model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    return str(info.sha), {file.rfilename: file for file in info.siblings or ()}


def _download_files(repo: str, revision: str, commit: str, files: Mapping[str, Any]) -> Path:
    def fetch(name: str, at: str = commit) -> Path:
        with redirect_stderr(unfiltered(sys.stderr)):  # its progress bar
            return Path(hf_hub_download(repo, name, revision=at, library_name=USER_AGENT))

    if CONFIG not in files:
        raise EdgeError(f"{repo} holds no {CONFIG} at revision {revision}; choose another one.")
    snapshot = fetch(CONFIG).parent
    indices = [INDEX] if INDEX in files else []
    listed = [name for index in indices for name in listed_files(fetch(index).parent)]
    weights = indices + choose_weights(files, listed, f"{repo} at revision {revision}")
    wanted = [name for name in SMALL_FILES if name in files] + weights
    if missing := [name for name in wanted if name not in files]:
        raise EdgeError(f"{INDEX} of {repo} names {missing[0]!r}, which is missing there.")
    _check_free_space(repo, snapshot, [files[name] for name in wanted])
    for name in wanted:
        fetch(name)
    fetch(CONFIG, at=revision)  # the cache records the branch's commit, now complete
    return snapshot


def _check_free_space(repo: str, snapshot: Path, files: Collection[Any]) -> None:
    folder = snapshot.parents[1]
    sizes = {(file.lfs.sha256 if file.lfs else file.blob_id): file.size or 0 for file in files}
    needed_bytes = sum(n for oid, n in sizes.items() if not (folder / "blobs" / str(oid)).exists())
    advice = "free some, or set HF_HOME to a folder on another disk"
    check_free(folder, needed_bytes, repo, advice)


def _sentence(error: Exception, repo: str, revision: str) -> str:
    """The reason of a failure and its remedy."""
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its licence on {page}, then run 'hf auth login'."
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"the hub has no {repo}, or it is private, and there is no such directory here; "
            f"check the spelling or run 'hf auth login'."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; choose one of those on {page}/tree/main."
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub denies access to {repo} (status {status}): your token is missing, has "
            f"expired or has no access; run 'hf auth login' and look at {page}."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(" .")
    return (
        f"{repo} cannot be downloaded ({f'status {status}' if status else reason}); check the "
        f"network, and the free space and permissions of {constants.HF_HUB_CACHE}."
    )
