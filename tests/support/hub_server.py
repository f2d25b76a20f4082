"""A hub on this machine: the listing of a model, and HEAD and GET of `resolve`."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server holds, how it fails, and the requests it has seen."""

    address: str
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # status, X-Error-Code
    sizes: dict[str, int] = field(default_factory=dict)  # listed for OWNER/NAME/FILE
    mute: bool = False  # closes the connection instead of answering
    seen: list[tuple[str, str]] = field(default_factory=list)  # method, path

    def add(self, name: str, directory: Path, revision: str = "main", **extra: bytes) -> None:
        """Serve the files of a directory, and `extra` ones, as a revision of a repository."""
        files = {path.name: path.read_bytes() for path in directory.iterdir()} | extra
        self.repos.setdefault(name, {})[revision] = files

    def fetched(self) -> list[str]:
        paths = [path for method, path in self.seen if method == "GET" and "/api/" not in path]
        return [path.rpartition("/")[2] for path in paths]

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        api = path.startswith("/api/models/")
        place = [unquote(part) for part in path.removeprefix("/api/models/").strip("/").split("/")]
        name, revision = "/".join(place[:2]), place[3]
        if name not in self.repos:
            return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
        revisions = self.repos[name]
        by_commit = {commit_of(files): files for files in revisions.values()}
        files = revisions.get(revision) or by_commit.get(revision)
        if files is None:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if api:
            siblings = [
                {"rfilename": f, "blobId": oid(c), "size": self.sizes.get(f"{name}/{f}", len(c))}
                for f, c in files.items()
            ]
            listing = {"id": name, "sha": commit_of(files), "siblings": siblings}
            return 200, json.dumps(listing).encode(), {}
        if name in self.refusals:
            status, code = self.refusals[name]
            return status, b"{}", {"X-Error-Code": code}
        content = files["/".join(place[4:])]
        return 200, content, {"X-Repo-Commit": commit_of(files), "ETag": f'"{oid(content)}"'}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on an ephemeral port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urlsplit(self.path).path
            hub.seen.append((self.command, path))
            self.close_connection = hub.mute
            if hub.mute:
                return
            status, body, headers = hub.answer(path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
