"""Checkpoints from the Hugging Face hub, kept in huggingface_hub's own cache.

Files come one after the other in this thread, so that Ctrl-C does not wait for one, as the threads
of `snapshot_download` do. A file that broke off begins again in the next run.

Imported where it is used, since the library takes a second to load.
"""

import errno
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache

from edge.convert.sources.directory import PICKLES, SMALL_FILES, TOKENIZER, weight_files
from edge.errors import EdgeError
from edge.formats.safetensors import INDEX

DEFAULT_REVISION = "main"
CONFIG, SINGLE = "config.json", "model.safetensors"
# Not the checkpoint itself, or the same weights again in another layout or precision.
SECONDARY = re.compile(r"^(consolidated|adapter_)|[._-](fp16|fp32|bf16|f16|f32|non_ema)[.-]")
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")  # what git allows, less what leads elsewhere
US = "stable-edge"  # as the library tells the hub
DISK_ERRORS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room")
DISK_ERRORS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions")


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot directory if the cache holds the whole checkpoint; never asks the network."""
    revision = revision or DEFAULT_REVISION
    try:
        config = try_to_load_from_cache(repo, CONFIG, revision=revision)
        if not REVISION.fullmatch(revision) or not isinstance(config, str):
            return None
        snapshot = Path(config).parent
        needed = [CONFIG, TOKENIZER, *weight_files(snapshot)]
        return snapshot if all((snapshot / name).is_file() for name in needed) else None
    except (OSError, ValueError, EdgeError):  # of the library too: no name of a repository
        return None


def download(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """Bring owner/name into the cache; files that are there already are not fetched again.

    Returns the snapshot directory, and the commit's 40 hexadecimal digits.
    """
    revision = revision or DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        raise EdgeError(f"{revision!r} is not a revision of {repo}; name a branch, tag or commit.")
    there = cached(repo, revision)
    if there and (constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision)):
        return there, there.name
    if constants.HF_HUB_OFFLINE:
        raise EdgeError(
            f"{repo} at revision {revision} cannot be fetched from the hub because HF_HUB_OFFLINE "
            f"is set, and the cache holds no whole checkpoint of it; unset it, or give a directory."
        )
    commit = None
    try:
        commit, files = _ask(repo, revision)
        there = _bring(repo, revision, commit, files)
    except EdgeError:
        raise
    except Exception as error:  # whatever a network, a proxy or a cache can do
        wrong_name = isinstance(error, errors.RevisionNotFoundError | errors.HFValidationError)
        if there is None or commit or wrong_name:  # else a checkpoint at hand is better than none
            raise EdgeError(_sentence(error, repo, revision)) from None
    return there, there.name


def choose_weights(names: Collection[str]) -> list[str]:
    """The safetensors among a repository's files that make the checkpoint, without an index."""
    weights = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if SINGLE in weights:
        return [SINGLE]
    return [name for name in weights if not SECONDARY.search(name)] or weights


def _ask(repo: str, revision: str) -> tuple[str, dict[str, Any]]:
    """The commit, and its files as the library describes them, by name."""
    info = HfApi(library_name=US).model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    return str(info.sha), {file.rfilename: file for file in info.siblings or ()}


def _bring(repo: str, revision: str, commit: str, files: Mapping[str, Any]) -> Path:
    def fetch(name: str, at: str = commit) -> Path:
        return Path(hf_hub_download(repo, name, revision=at, library_name=US))

    if CONFIG not in files or not choose_weights(files):
        pickle = next((name for name in files if name.endswith(PICKLES)), None)
        note = f" but pickles ({pickle}), which can run any code and are never opened"
        raise EdgeError(
            f"{repo} holds no {'*.safetensors' if CONFIG in files else CONFIG} at revision "
            f"{revision}{note if pickle else ''}; choose another one."
        )
    snapshot = fetch(CONFIG).parent
    weights = choose_weights(files)
    if INDEX in files:
        weights = [INDEX, *weight_files(fetch(INDEX).parent)]
    wanted = [name for name in SMALL_FILES if name in files] + weights
    for name in wanted:
        if name not in files:
            raise EdgeError(
                f"{INDEX} of {repo} names {name!r}, which is not there; choose another."
            )
    _check_room(repo, snapshot, [files[name] for name in wanted])
    for name in wanted:
        fetch(name)
    fetch(CONFIG, at=revision)  # the cache notes the branch's commit, now that it is whole
    return snapshot


def _check_room(repo: str, snapshot: Path, files: Collection[Any]) -> None:
    folder = snapshot.parents[1]
    sizes = {(file.lfs.sha256 if file.lfs else file.blob_id): file.size or 0 for file in files}
    needed_bytes = sum(n for oid, n in sizes.items() if not (folder / "blobs" / str(oid)).exists())
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise EdgeError(
            f"{repo} needs {needed_bytes / 1e9:.1f} GB more, and the disk of {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free; make room or set HF_HOME to a folder on another disk."
        )


def _sentence(error: Exception, repo: str, revision: str) -> str:
    """The cause of a failure and its remedy."""
    page, cache = f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
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
    in_text = (code for code in DISK_ERRORS if os.strerror(code) in str(error))  # as hf_xet's
    code = getattr(error, "errno", None) or next(in_text, None)
    if status in (401, 403):
        return (
            f"the hub refuses to give {repo} (status {status}): your token is missing, has expired "
            f"or has no access; run 'hf auth login' and look at {page}."
        )
    if code is not None:
        remedy = DISK_ERRORS.get(code, "check the folder")
        return (
            f"{repo} cannot be written to {cache} ({os.strerror(code)}); {remedy} or set HF_HOME "
            f"to another folder."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(" .")
    return (
        f"{repo} cannot be fetched from the hub ({f'status {status}' if status else reason}); "
        f"check the network, then run the command again."
    )
