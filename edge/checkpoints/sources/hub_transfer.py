"""One file from the hub, resumed where an earlier attempt broke off, and checked.

huggingface_hub deletes a partial file when its download breaks off, so that gigabytes start from
zero in the next run, and compares sizes but no hashes. Hence this file, over plain HTTP: what came
stays, and the rest is asked for with a Range. A connection that is silent for
HF_HUB_DOWNLOAD_TIMEOUT (10 s) counts as broken; it is tried again after each of WAITS_S.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.checkpoints.sources.hub_cache import Cache, RemoteFile, bytes_there
from edge.checkpoints.sources.hub_words import may_pass, reason
from edge.errors import EdgeError

WAITS_S = (0.5, 1.0, 2.0)
PROGRESS_BYTES = 1 << 20  # an attempt that brought this much is not one that failed

# Told (file name, bytes there, bytes in all).
Report = Callable[[str, int, int], None]


def fetch(repo: str, cache: Cache, commit: str, file: RemoteFile, report: Report) -> Path:
    """The path of the whole file, fetched as far as it is not there."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    pointer, blob = cache.snapshot(commit) / file.name, cache.blob(file)
    if pointer.exists() or blob.exists():
        return pointer if pointer.exists() else blob
    for path in (blob, cache.lock(file)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache.lock(file)):
        if not blob.exists():  # another process may have brought it meanwhile
            partial = cache.partial(file)
            if bytes_there(partial) > file.size_bytes:
                partial.unlink()
            _transfer(hf_hub_url(repo, file.name, revision=commit), repo, file, partial, report)
            _verify(repo, file, partial)
            partial.replace(blob)
    return blob


def _transfer(url: str, repo: str, file: RemoteFile, partial: Path, report: Report) -> None:
    """Until all bytes are there, or too many attempts in a row brought next to nothing."""
    if not file.size_bytes:
        partial.touch()
    failures = 0
    while (before := bytes_there(partial)) < file.size_bytes:
        try:
            _attempt(url, repo, file, partial, report)
        except Exception as error:
            if not may_pass(error):
                raise
            failures = 1 if bytes_there(partial) - before >= PROGRESS_BYTES else failures + 1
            if failures > len(WAITS_S):
                where = f"{as_text(bytes_there(partial))} of {as_text(file.size_bytes)}"
                raise EdgeError(
                    f"the connection to the hub broke off {failures} times in a row, at {where} of "
                    f"{file.name} of {repo} ({reason(error)}); run the same command again to "
                    f"resume there."
                ) from None
            time.sleep(WAITS_S[failures - 1])


def _attempt(url: str, repo: str, file: RemoteFile, partial: Path, report: Report) -> None:
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    start = bytes_there(partial)
    # Compressed, a range would count other bytes than those on disk.
    headers = {**build_hf_headers(library_name="stable-edge"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:  # the server sends all of it, whatever was asked
            start = 0
        length = answer.headers.get("Content-Length")
        if length is not None and "Content-Encoding" not in answer.headers:
            _expect(repo, file, partial, start + int(length))
        with partial.open("ab" if start else "wb") as out:
            for chunk in answer.iter_bytes():
                start += out.write(chunk)
                report(file.name, start, file.size_bytes)
    if start < file.size_bytes:
        raise ConnectionError("the answer ended early")


def _verify(repo: str, file: RemoteFile, partial: Path) -> None:
    _expect(repo, file, partial, bytes_there(partial))
    with partial.open("rb") as data:
        if len(file.oid) == 64:
            found = hashlib.file_digest(data, "sha256").hexdigest()
        else:
            sha1 = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
            sha1.update(data.read())  # only small files are kept in git itself
            found = sha1.hexdigest()
    if found != file.oid:
        _discard(repo, file, partial, f"its hash is {found[:12]}…, not {file.oid[:12]}…")


def _expect(repo: str, file: RemoteFile, partial: Path, found_bytes: int) -> None:
    if found_bytes != file.size_bytes:
        _discard(repo, file, partial, f"{found_bytes} bytes, not {file.size_bytes}")


def _discard(repo: str, file: RemoteFile, partial: Path, difference: str) -> None:
    partial.unlink(missing_ok=True)
    raise EdgeError(
        f"{file.name} of {repo} is not what the hub announced ({difference}) and was thrown away; "
        f"run the same command again, and if that does not help look for a proxy in between."
    )


def as_text(count_bytes: int) -> str:
    """A size for people, in the decimal units that the hub shows."""
    if count_bytes >= 1e9:
        return f"{count_bytes / 1e9:.1f} GB"
    return f"{count_bytes / 1e6:.1f} MB" if count_bytes >= 1e6 else f"{count_bytes / 1e3:.1f} kB"


@contextmanager
def progress_bars() -> Iterator[Report]:
    """A bar per file on stderr, if that is a terminal."""
    from huggingface_hub import constants

    if not sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    columns: tuple[Any, ...] = (BarColumn(), DownloadColumn(), SpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=Console(file=sys.stderr)) as bars:
        tasks: dict[str, Any] = {}

        def report(name: str, done_bytes: int, all_bytes: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=all_bytes)
            bars.update(tasks[name], completed=done_bytes)

        yield report
