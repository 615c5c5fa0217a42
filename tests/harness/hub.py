"""A small model hub on 127.0.0.1: what ``huggingface_hub`` asks of a real one to fetch a snapshot.

Repositories are folders. Revisions are commits of 40 hex digits, named by branches. It answers
``GET /api/models/...``, ``GET /api/models/.../tree/<revision>`` and ``HEAD|GET .../resolve/...``
with ranges, gates, private repositories and the real hub's error codes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One model: commits as folders, branches, and who may read it."""

    commits: dict[str, Path]
    branches: dict[str, str]
    gated: bool = False
    private: bool = False
    token: str = "hf_letmein"


@dataclass
class Hub:
    """A running hub; ``requests`` are the (method, path, token) that it was asked."""

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    broken: bool = False
    """Answer 500 to everything."""
    cut_downloads: bool = False
    """Close the connection in the middle of each file."""

    def add(self, name: str, folder: Path, *, branch: str = "main", **kwargs: bool) -> str:
        """Offer a folder as the next commit of a branch; returns the commit."""
        repository = self.repositories.setdefault(name, Repository({}, {}, **kwargs))
        commit = hashlib.sha1(f"{name}/{branch}/{len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = folder
        repository.branches[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """Return the names of the files that were read, in order."""
        return [
            p.rpartition("/")[2] for m, p, _ in self.requests if m == "GET" and "/resolve/" in p
        ]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port while the body runs."""
    hub: Hub

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            _answer(hub, self, body=False)

        def do_GET(self) -> None:
            _answer(hub, self, body=True)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(hub: Hub, request: BaseHTTPRequestHandler, *, body: bool) -> None:
    path = unquote(urlsplit(request.path).path)
    bearer = request.headers.get("Authorization")
    token = bearer.removeprefix("Bearer ") if bearer else None
    hub.requests.append((request.command, path, token))
    if hub.broken:
        return _send(request, 500, {}, b"the hub is broken", body)
    api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(/.*)?", path)
    file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    found = api or file
    if not found or found[1] not in hub.repositories:
        return _refuse(request, 401 if not token else 404, "RepoNotFound", body)
    repository = hub.repositories[found[1]]
    known = token == repository.token
    if repository.private and not known:
        return _refuse(request, 401 if not token else 404, "RepoNotFound", body)
    revision = (api[3] if api else found[2]) or "main"
    commit = repository.branches.get(revision, revision)
    if commit not in repository.commits:
        return _refuse(request, 404, "RevisionNotFound", body)
    if file and repository.gated and not known:
        return _refuse(request, 401 if not token else 403, "GatedRepo", body)
    folder = repository.commits[commit]
    if file:
        return _file(hub, request, folder / found[3], commit, body)
    entries = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [(p.relative_to(folder).as_posix(), p.stat().st_size, _oid(p)) for p in entries]
    if api and api[2] == "tree":
        data: object = [{"type": "file", "path": n, "size": s, "oid": o} for n, s, o in names]
    else:
        data = {
            "id": found[1],
            "sha": commit,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "siblings": [{"rfilename": n, "size": s, "blobId": o} for n, s, o in names],
        }
    kind = {"Content-Type": "application/json"}
    return _send(request, 200, kind, json.dumps(data).encode(), body)


def _file(hub: Hub, request: BaseHTTPRequestHandler, path: Path, commit: str, body: bool) -> None:
    if not path.is_file():
        return _refuse(request, 404, "EntryNotFound", body)
    data = path.read_bytes()
    headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    status, wanted = 200, re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if wanted:
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        status, data = 206, data[start : end + 1]
    if hub.cut_downloads and body:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        request.close_connection = True
        return None
    return _send(request, status, headers, data, body)


def _oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str, body: bool) -> None:
    headers = {"X-Error-Code": code, "X-Error-Message": code}
    _send(request, status, headers, json.dumps({"error": code}).encode(), body)


def _send(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, body: bool
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(data)
