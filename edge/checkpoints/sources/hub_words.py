"""What can go wrong with the hub, each in one sentence that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from edge.checkpoints.sources.hub_cache import Cache
from edge.errors import EdgeError

PASSING_STATUS = (408, 429, 500, 502, 503, 504)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    # The library's HTTP client has changed its name between versions; this is its base error.
    return isinstance(error, (HfHubHTTPError.__mro__[1], ConnectionError, TimeoutError))


@contextmanager
def in_words(repo: str, revision: str) -> Iterator[None]:
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
            f"the same command again to resume, or set HF_HOME to a folder on another disk."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}), so {repo} has no "
            f"place; set HF_HOME to a folder of yours."
        )
    return (
        f"{repo} cannot be fetched from the hub ({reason(error)}), {_holdings(repo)}, and there "
        f"is no such directory here; check the network, or give a directory."
    )


def offline(repo: str, revision: str) -> str:
    """Why a checkpoint that is not in the cache cannot be had."""
    return (
        f"{repo} at revision {revision} cannot be fetched from the hub because HF_HUB_OFFLINE is "
        f"set, and {_holdings(repo)}; unset it, or give a directory with the checkpoint."
    )


def _holdings(repo: str) -> str:
    held = Cache.of(repo).revisions()
    if not held:
        return "the cache holds no whole checkpoint of it"
    return f"the cache holds it only at revision {', '.join(held)}"


def reason(error: Exception) -> str:
    """The first line of what a library says, short enough for a sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"it answers with status {status}"
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(" .") if lines else type(error).__name__
