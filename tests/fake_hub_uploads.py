"""The half of the Hub in miniature that takes uploads.

whoami, repos/create, branch, validate-yaml, preupload (which files are large), and the commit.
Between these two the large files come: where HF_HUB_DISABLE_XET is set by Git LFS's batch, with
basic and multipart transfers and verification; else by Xet, to a store that the Hub names and that
is this server too. It takes xorbs, which are blocks of data, and knows nothing of what is in them:
of a file that came so, a commit holds what Git has in its place, the pointer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from fnmatch import fnmatchcase

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_PREUPLOAD = re.compile(rf"/api/models/{_REPO}/preupload/(?P<revision>.+)")
_COMMIT = re.compile(rf"/api/models/{_REPO}/commit/(?P<revision>.+)")
_BRANCH = re.compile(rf"/api/models/{_REPO}/branch/(?P<revision>.+)")
_BATCH = re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?")
_COMPLETE = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})/complete")
_XET_TOKEN = re.compile(rf"/api/models/{_REPO}/xet-write-token/.+")
_XORB = re.compile(r"/v1/xorbs/default/(?P<key>[0-9a-f]{64})")
#: as .gitattributes of a new repository has it
_LARGE = "*.safetensors"


class Uploads:
    """For the server's handler: requests that bring something."""

    def _body(self) -> bytes:
        """What came with the request."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _uploads(self, path: str, body: bytes) -> bool:
        """Answer a request if it is one of these."""
        if self.command == "PUT" and (match := _OBJECT.fullmatch(path)):
            self._put(match["oid"], match["part"], body)
        elif path == "/api/whoami-v2":
            if namespaces := self._namespaces():
                orgs = [{"name": name} for name in namespaces[1:]]
                self._json({"type": "user", "name": namespaces[0], "orgs": orgs})
        elif match := _XET_TOKEN.fullmatch(path):
            if self._may_write(match["repo"]):
                expiry = int(time.time()) + 3600
                store = {"casUrl": self.server.hub.url, "accessToken": "xet", "exp": expiry}
                self._json(store)
        elif self.command != "POST":
            return False
        elif match := _XORB.fullmatch(path):
            self.server.hub.xorbs[match["key"]] = body
            self._json({"was_inserted": True})
        elif path == "/v1/shards":
            self._json({"result": 1})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := _PREUPLOAD.fullmatch(path):
            if self._may_write(match["repo"]):
                files = json.loads(body)["files"]
                self._preupload(match["repo"], match["revision"], files)
        elif match := _BATCH.fullmatch(path):
            if self._may_write(match["repo"]):
                self._batch(json.loads(body)["objects"])
        elif match := _COMPLETE.fullmatch(path):
            self._complete(match["oid"], json.loads(body)["parts"])
        elif path == "/lfs/verify":
            stored = self.server.hub.objects.get(json.loads(body)["oid"])
            self._send(200 if stored is not None else 404)
        elif match := _COMMIT.fullmatch(path):
            if self._may_write(match["repo"]):
                lines = [json.loads(line) for line in body.splitlines()]
                self._commit(match["repo"], match["revision"], lines)
        elif match := _BRANCH.fullmatch(path):
            if self._may_write(match["repo"]):
                refs = self.server.hub.repositories[match["repo"]].refs
                held = refs.setdefault(match["revision"], refs["main"])
                self._json({}, 201 if held == refs["main"] else 409)
        else:
            return False
        return True

    def _namespaces(self) -> tuple[str, ...] | None:
        """Where the caller may write, or None once the right error was sent."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        namespaces = self.server.hub.tokens.get(token)
        if namespaces is None:
            self._send(401)
        return namespaces

    def _may_write(self, repo_id: str) -> bool:
        """Whether the caller may; if not, the right error was sent."""
        namespaces = self._namespaces()
        if namespaces is None:
            return False
        if repo_id.split("/")[0] not in namespaces:
            self._send(403)
            return False
        return True

    def _create(self, request: dict) -> None:
        hub = self.server.hub
        namespaces = self._namespaces()
        if namespaces is None:
            return
        repo_id = f"{request['organization'] or namespaces[0]}/{request['name']}"
        if not self._may_write(repo_id):
            return
        url = f"{hub.url}/{repo_id}"
        if repo_id in hub.repositories:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        hub.commit(repo_id, {".gitattributes": f"{_LARGE} filter=lfs".encode()})
        private = request.get("visibility") == "private" or request.get("private") is True
        hub.repositories[repo_id].private = private
        self._json({"url": url})

    def _preupload(self, repo_id: str, revision: str, files: list[dict]) -> None:
        held = self.server.hub.files(repo_id, revision)
        answers = []
        for file in files:
            name, large = file["path"], fnmatchcase(file["path"], _LARGE)
            oid = _oid(held[name], large) if name in held else None
            mode = "lfs" if large else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _batch(self, objects: list[dict]) -> None:
        hub = self.server.hub
        answers = []
        for item in objects:
            oid, size = item["oid"], item["size"]
            answers.append({"oid": oid, "size": size})
            if oid in hub.objects:
                continue
            upload = {"href": f"{hub.url}/lfs/{oid}"}
            if hub.part_size is not None and size > hub.part_size:
                parts = range(1, -(-size // hub.part_size) + 1)
                urls = {f"{part:05}": f"{hub.url}/lfs/{oid}/{part}" for part in parts}
                upload = {
                    "href": f"{hub.url}/lfs/{oid}/complete",
                    "header": {"chunk_size": str(hub.part_size), **urls},
                }
            verify = {"href": f"{hub.url}/lfs/verify"}
            answers[-1]["actions"] = {"upload": upload, "verify": verify}
        self._json({"transfer": "basic", "objects": answers})

    def _put(self, oid: str, part: str | None, body: bytes) -> None:
        hub = self.server.hub
        if part is not None:
            hub.objects[f"{oid}/{part}"] = body
        elif hashlib.sha256(body).hexdigest() == oid:
            hub.objects[oid] = body
        else:
            self._send(400)
            return
        self._send(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _complete(self, oid: str, parts: list[dict]) -> None:
        hub = self.server.hub
        bodies = [hub.objects.pop(f"{oid}/{part['partNumber']}", b"") for part in parts]
        tags = [f'"{hashlib.md5(body).hexdigest()}"' for body in bodies]
        data = b"".join(bodies)
        if tags != [part["etag"] for part in parts] or hashlib.sha256(data).hexdigest() != oid:
            self._send(400)
            return
        hub.objects[oid] = data
        self._json({"success": True})

    def _commit(self, repo_id: str, revision: str, lines: list[dict]) -> None:
        hub = self.server.hub
        files = hub.files(repo_id, revision)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects.get(value["oid"]) or _pointer(value)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hub.commit(repo_id, files, revision)
        url = f"{hub.url}/{repo_id}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})


def _pointer(value: dict) -> bytes:
    """See https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md."""
    lines = "version https://git-lfs.github.com/spec/v1", "oid sha256:{oid}", "size {size}", ""
    return "\n".join(lines).format(**value).encode()


def _oid(data: bytes, large: bool) -> str:
    """As Git has it, or Git LFS."""
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
