"""Where huggingface_hub keeps what came from the hub: the layout of its cache.

`blobs/OID` are the files, `snapshots/COMMIT/NAME` points to a blob, `refs/REVISION` holds a
commit. Other programs share it; `blobs/OID.incomplete` is what the library's older versions
resume from as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge.checkpoints.sources.companions import INDEX

CONFIG = "config.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub announces it.

    `oid` is the SHA-256 of a large file (Git LFS), else git's SHA-1 of the blob.
    """

    name: str
    oid: str
    size_bytes: int


@dataclass(frozen=True)
class Cache:
    """Where huggingface_hub keeps one repository; nothing of it need exist."""

    folder: Path

    @classmethod
    def of(cls, repo: str) -> Cache:
        """The place of a repository, read from the library's settings at the time of asking."""
        from huggingface_hub import constants

        folder = f"models--{repo.replace('/', '--')}"
        return cls(Path(constants.HF_HUB_CACHE).expanduser() / folder)

    def blob(self, file: RemoteFile) -> Path:
        """A whole file."""
        return self.folder / "blobs" / file.oid

    def partial(self, file: RemoteFile) -> Path:
        """What there is of a file that is not whole yet."""
        return self.folder / "blobs" / f"{file.oid}.incomplete"

    def lock(self, file: RemoteFile) -> Path:
        """The lock that the library takes for the same blob."""
        return self.folder.parent / ".locks" / self.folder.name / f"{file.oid}.lock"

    def snapshot(self, commit: str) -> Path:
        """The directory with the files of one commit."""
        return self.folder / "snapshots" / commit

    def commit(self, revision: str) -> str | None:
        """The commit that a revision was when it was last asked for."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            return (self.folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None

    def revisions(self) -> list[str]:
        """Branches and tags of which a whole checkpoint is there."""
        refs = self.folder / "refs"
        names = (p.relative_to(refs).as_posix() for p in sorted(refs.rglob("*")) if p.is_file())
        return [name for name in names if not name.startswith(".") and self.whole(name)]

    def whole(self, revision: str) -> Path | None:
        """The snapshot of a revision if config and weights are all there."""
        commit = self.commit(revision)
        if not commit or not COMMIT.fullmatch(commit):
            return None
        snapshot = self.snapshot(commit)
        return snapshot if is_whole(snapshot) else None


def index_names(index: Path) -> list[str] | None:
    """The files that an index of shards names, None if it is no such index."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return sorted(names) if all(isinstance(name, str) for name in names) else None


def is_whole(snapshot: Path) -> bool:
    """Whether a snapshot has config, tokenizer and all the weights that its index names.

    Other programs fetch single files, so that a snapshot that exists may lack any.
    """
    if not all((snapshot / name).is_file() for name in (CONFIG, "tokenizer.json")):
        return False
    shards = index_names(snapshot / INDEX) if (snapshot / INDEX).is_file() else []
    if shards is None:
        return False
    weights = [snapshot / name for name in shards] or list(snapshot.glob("*.safetensors"))
    return bool(weights) and all(path.is_file() for path in weights)


def is_there(cache: Cache, commit: str, file: RemoteFile) -> bool:
    """Whether nothing of the file need be fetched."""
    return cache.blob(file).exists() or (cache.snapshot(commit) / file.name).exists()


def link(cache: Cache, commit: str, file: RemoteFile) -> None:
    """Let the snapshot point to the blob."""
    pointer = cache.snapshot(commit) / file.name
    if pointer.exists():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    try:
        pointer.symlink_to(Path("../..") / "blobs" / file.oid)
    except FileExistsError:  # by a faster process, or from before its blob was deleted
        return
    except OSError:  # a file system without symbolic links
        shutil.copyfile(cache.blob(file), pointer)


def remember(cache: Cache, revision: str, commit: str) -> None:
    """Write down which commit a revision is, for the next time without a network."""
    if revision == commit or cache.commit(revision) == commit:
        return
    ref = cache.folder / "refs" / revision
    fresh = ref.with_name(f".{ref.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # the files are there, whatever becomes of the note
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(commit)
        fresh.replace(ref)


def bytes_there(path: Path) -> int:
    """The size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
