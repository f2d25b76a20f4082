"""A small hub on this machine, speaking HTTP as huggingface_hub uses it.

What it answers follows the real hub: the model's listing with sizes and hashes, HEAD and GET of
`resolve` with ETag and X-Repo-Commit, a redirect to another place for large files (as to the real
one's CDN) with X-Linked-Size and X-Linked-Etag, Range, and X-Error-Code with a refusal.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", ".png")


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repo:
    """One repository: the files of each revision, and who may have them.

    `refusal` is (status, X-Error-Code) for every file; the listing of a gated one is public.
    `lies` is what the listing says of a file instead of the truth: (size or None, hash or None).
    """

    revisions: dict[str, dict[str, bytes]]
    refusal: tuple[int, str] | None = None
    lies: dict[str, tuple[int | None, str | None]] = field(default_factory=dict)

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or commit."""
        for name, files in self.revisions.items():
            commit = commit_of(files)
            if revision in (name, commit):
                return commit, files
        return None


@dataclass
class Hub:
    """The server, to be told what to do and asked what it saw."""

    address: str = ""
    # The same machine under another name: another origin, as the real hub's CDN is.
    content_address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    # Close the connection when a file reaches this byte: `breaks` times, then no more.
    break_at: int | None = None
    breaks: int = 0
    # Close it instead of answering at all.
    mute: bool = False
    # Answer that many requests with a status first.
    stumbles: list[int] = field(default_factory=list)
    ignores_range: bool = False

    def add(self, name: str, directory: Path, revision: str = "main", **extra: bytes) -> None:
        """Serve the files of a directory, and `extra` ones, as a revision of a repository."""
        files = {path.name: path.read_bytes() for path in directory.iterdir()} | extra
        self.repos.setdefault(name, Repo({})).revisions[revision] = files

    def asked_for(self, name: str) -> list[Seen]:
        """Requests for the content of a file, redirects followed."""
        return [s for s in self.seen if "/content/" in s.path and s.path.endswith(f"/{name}")]

    def names(self) -> set[str]:
        """Every file that was asked for in any way."""
        return {s.path.rpartition("/")[2] for s in self.seen if "/api/" not in s.path}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on an ephemeral port."""
    hub = Hub()

    class Handler(_Handler):
        def __init__(self, *args):
            self.hub = hub
            super().__init__(*args)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.content_address = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()


def oid_of(name: str, content: bytes) -> str:
    """SHA-256 of a file in LFS, else git's SHA-1."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(repo: Repo, name: str, content: bytes) -> dict:
    size, oid = repo.lies.get(name, (None, None))
    size, oid = size or len(content), oid or oid_of(name, content)
    if name.endswith(LARGE):
        pointer = hashlib.sha1(oid.encode()).hexdigest()
        lfs = {"sha256": oid, "size": size, "pointerSize": 134}
        return {"rfilename": name, "blobId": pointer, "size": size, "lfs": lfs}
    return {"rfilename": name, "blobId": oid, "size": size}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(
            Seen(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.hub.mute:
            self.close_connection = True
            return
        if self.hub.stumbles:
            self._refuse(self.hub.stumbles.pop(0), "Stumbled")
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "revision" in parts and len(parts) >= 6:
            self._listing("/".join(parts[2:4]), "/".join(parts[5:]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif len(parts) >= 5 and parts[2] == "content":
            self._content("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    def _listing(self, name, revision):
        repo = self.hub.repos.get(name)
        if repo is None:
            self._refuse(401, "RepoNotFound")
            return
        found = repo.find(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        siblings = [_sibling(repo, file, content) for file, content in files.items()]
        body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name, revision, file):
        repo = self.hub.repos.get(name)
        if repo is None or (found := repo.find(revision)) is None:
            self._refuse(404, "RevisionNotFound" if repo else "RepoNotFound")
            return
        if repo.refusal:
            self._refuse(*repo.refusal)
            return
        commit, files = found
        if file not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content, oid = files[file], f'"{oid_of(file, files[file])}"'
        headers = {"X-Repo-Commit": commit, "ETag": oid}
        if file.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": oid}
        # Small ones too, so that a test finds every content that was sent in one place.
        headers["Location"] = f"{self.hub.content_address}/{name}/content/{commit}/{file}"
        self._send(302, b"", headers)

    def _content(self, name, commit, file):
        _, files = self.hub.repos[name].find(commit)
        content, wanted = files[file], self.headers.get("Range")
        headers = {"ETag": f'"{oid_of(file, content)}"', "Accept-Ranges": "bytes"}
        if not wanted or self.hub.ignores_range:
            self._send(200, content, headers, self.hub.break_at)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self._refuse(416, "OutOfRange")
            return
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = self.hub.break_at and max(0, self.hub.break_at - start)
        self._send(206, content[start:], headers, stop)

    def _refuse(self, status, code, headers=None):
        body = json.dumps({"error": f"{code}\nand a second line"}).encode()
        self._send(status, body, {"X-Error-Code": code, **(headers or {})})

    def _send(self, status, body, headers, stop=None):
        """The answer; with `stop`, the connection breaks after that many bytes of it."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if stop is not None and self.hub.breaks > 0 and len(body) > stop:
            self.hub.breaks -= 1
            self.close_connection = True
            body = body[:stop]
        self.wfile.write(body)
