"""A Hugging Face Hub in miniature, on 127.0.0.1, for tests: folders served as repositories.

It speaks what huggingface_hub's client asks for (model info, tree, resolve; for uploads see
fake_hub_uploads.py), records every request, and can be told to fail:

    with FakeHub() as hub:
        commit = hub.add("owner/name", folder)
        hub.fail("GET /api/models/*", status=500)
        ...
        assert hub.fetched() == ["config.json"]
"""

import hashlib
import json
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fake_hub_uploads import Uploads

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)")
_RESOLVE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Request:
    """One request as it came in: path unquoted and without query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Repository:
    """Commits (each a folder) and the branches or tags that point at them."""

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Fault:
    """What happens instead to requests that match `pattern`, `times` times (None: always)."""

    pattern: str
    times: int | None
    status: int = 200
    error_code: str | None = None
    body: bytes = b""
    cut_after: int | None = None


class FakeHub:
    """The server; a context manager. `url` is what HF_ENDPOINT has to be.

    tokens: who may write, by access token: the namespaces, the user's own first.
    objects: contents of the large files that were uploaded, by SHA-256.
    xorbs: blocks of them that came by Xet.
    part_size: if set, larger files are asked for in parts of so many bytes.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, tuple[str, ...]] = {}
        self.objects: dict[str, bytes] = {}
        self.xorbs: dict[str, bytes] = {}
        self.part_size: int | None = None
        self._folders = tempfile.TemporaryDirectory(prefix="fake-hub-")
        self.on_request: Callable[[Request], None] = lambda request: None
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
        self._folders.cleanup()

    def add(self, repo_id: str, folder: Path, ref: str = "main") -> str:
        """Make the files of `folder` the newest commit of branch `ref`; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository())
        commit = hashlib.sha1(f"{repo_id} {folder} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = Path(folder)
        repository.refs[ref] = commit
        return commit

    def commit(self, repo_id: str, files: dict[str, bytes], ref: str = "main") -> str:
        """The same with these files."""
        folder = Path(tempfile.mkdtemp(dir=self._folders.name))
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return self.add(repo_id, folder, ref)

    def files(self, repo_id: str, ref: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[repo_id]
        return _files(repository.commits[repository.commit(ref)])

    def fail(
        self,
        pattern: str,
        *,
        status: int,
        error_code: str | None = None,
        body: bytes = b"",
        times: int | None = None,
    ) -> None:
        """Answer requests like `GET /owner/name/resolve/*` (a glob) with this status instead."""
        self._faults.append(Fault(pattern, times, status, error_code, body))

    def cut(self, pattern: str, *, after: int, times: int | None = None) -> None:
        """Announce the whole file, send `after` bytes of it, and drop the connection; of a file
        that is being uploaded, take so many bytes."""
        self._faults.append(Fault(pattern, times, cut_after=after))

    def fetched(self) -> list[str]:
        """Sorted names of the files whose content was asked for, with repetitions."""
        matches = (_RESOLVE.fullmatch(r.path) for r in self.requests if r.method == "GET")
        return sorted(match["file"] for match in matches if match)

    def forget(self) -> None:
        """Forget recorded requests and faults, not the repositories."""
        self.requests.clear()
        self._faults.clear()

    def record(self, request: Request) -> Fault | None:
        """Note a request (called by the server), and return the fault it shall meet."""
        self.on_request(request)
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times != 0 and fnmatchcase(str(request), fault.pattern):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds; no connection of a test outlives it

    def do_HEAD(self):
        self._handle()

    def do_GET(self):
        self._handle()

    def do_POST(self):
        self._handle()

    def do_PUT(self):
        self._handle()

    def log_message(self, format, *args):
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.server.hub.record(Request(self.command, path, headers))
        if fault and fault.cut_after is not None and self.command in ("POST", "PUT"):
            self.rfile.read(fault.cut_after)
            self._hang_up()
            return
        body = self._body()
        if fault and fault.cut_after is None:
            self._send(fault.status, fault.body, error_code=fault.error_code)
        elif self._uploads(path, body):
            pass
        elif match := _RESOLVE.fullmatch(path):
            self._file(*match.group("repo", "revision", "file"), fault)
        elif match := _TREE.fullmatch(path):
            self._tree(*match.group("repo", "revision"))
        elif match := _INFO.fullmatch(path):
            self._info(match["repo"], match["revision"] or "main")
        elif path == "/api/agent-harnesses":
            self._json({"standardEnvVars": [], "harnesses": {}})
        else:
            self._send(404)

    def _find(self, repo_id: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder, or None once the right error was sent."""
        repository = self.server.hub.repositories.get(repo_id)
        commit = repository.commit(revision) if repository else None
        if commit is None:
            self._send(404, error_code="RevisionNotFound" if repository else "RepoNotFound")
            return None
        return commit, repository.commits[commit]

    def _info(self, repo_id: str, revision: str) -> None:
        if found := self._find(repo_id, revision):
            commit, folder = found
            siblings = [{"rfilename": name} for name in _files(folder)]
            private = self.server.hub.repositories[repo_id].private
            self._json(
                {
                    "id": repo_id,
                    "sha": commit,
                    "private": private,
                    "siblings": siblings,
                    "tags": [],
                }
            )

    def _tree(self, repo_id: str, revision: str) -> None:
        if found := self._find(repo_id, revision):
            _, folder = found
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in _files(folder).items()
                ]
            )

    def _file(self, repo_id: str, revision: str, name: str, fault: Fault | None) -> None:
        if not (found := self._find(repo_id, revision)):
            return
        commit, folder = found
        data = _files(folder).get(name)
        if data is None:
            self._send(404, error_code="EntryNotFound", headers={"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
        status, size = 200, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            status, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(status, data, headers=headers, cut_after=fault.cut_after if fault else None)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        body: bytes = b"",
        *,
        error_code: str | None = None,
        headers: dict[str, str] | None = None,
        cut_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error_code:
            self.send_header("X-Error-Code", error_code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut_after])
        if cut_after is not None:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _files(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its name in the repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
