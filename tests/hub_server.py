"""A small server that speaks the API of the Hugging Face hub on localhost: repositories, branches, commits, LFS, tokens.

It has what huggingface_hub, transformers and datasets ask for when they download and upload, and no more. No package that
does this is kept for tests: hf-local-hub has only the client on PyPI, and olah is a proxy of the real hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens; anything else is refused with 401."""

LFS = (".onnx", ".safetensors", ".data")


@dataclass
class Repository:
    """One repository: branches that name commits, and the files of each commit."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Make ``files`` the newest commit of a branch; return its name."""
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[digest] = files
        self.branches[branch] = digest
        return digest

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch or the beginning of a commit's name means."""
        named = self.branches.get(revision)
        return named or next((commit for commit in self.commits if commit == revision), None)


class Hub:
    """What the server knows, and what it was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        """Method and path of each request."""
        self.objects: dict[str, bytes] = {}
        """Uploaded LFS objects by their SHA-256."""
        self.endpoint = ""

    def add(self, name: str, files: dict[str, bytes], kind: str = "models", **settings: bool) -> str:
        """Add a repository with one commit on main; return the commit."""
        repository = self.repositories[f"{kind}/{name}"] = Repository(**settings)
        return repository.commit("main", files)


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def log_message(self, *_: Any) -> None:
        pass

    # --- answers ---

    def _answer(self, respond: Any) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            respond(parts)
        except _Refused as refused:
            self._send(
                refused.status,
                json.dumps({"error": refused.message}).encode(),
                {"X-Error-Code": refused.code, "X-Error-Message": refused.message},
            )

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    # --- rights ---

    def _token(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token not in (None, WRITER, READER):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return token

    def _require_writer(self) -> None:
        if (token := self._token()) is None:
            raise _Refused(401, "", "Invalid username or password.")
        if token != WRITER:
            raise _Refused(403, "", "You don't have the rights to write here")

    def _repository(self, kind: str, name: str, content: bool = False) -> Repository:
        token, repository = self._token(), self.hub.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and token is None):
            # As the hub: who is not signed in does not learn whether a repository exists.
            raise _Refused(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if content and repository.gated and token != WRITER:
            raise _Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        if (commit := repository.resolve(revision)) is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- reading ---

    def _get(self, parts: list[str]) -> None:
        if parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
            repository = self._repository(kind, name)
            if rest and rest[0] == "tree":
                self._tree(repository, rest[1], "/".join(rest[2:]))
            else:
                self._info(name, repository, rest[1] if rest else "main")
            return
        kind = "models"
        if parts[0] == "datasets":
            kind, parts = "datasets", parts[1:]
        if len(parts) < 5 or parts[2] != "resolve":
            raise _Refused(404, "", "Not found")
        self._file(self._repository(kind, "/".join(parts[:2]), content=True), parts[3], "/".join(parts[4:]))

    def _info(self, name: str, repository: Repository, revision: str) -> None:
        commit = self._commit(repository, revision)
        files = [{"rfilename": file} for file in repository.commits[commit]]
        facts = {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": []}
        self._json(facts | {"private": repository.private, "gated": repository.gated and "manual"})

    def _tree(self, repository: Repository, revision: str, folder: str) -> None:
        files = repository.commits[self._commit(repository, revision)]
        entries = [_entry(name, content) for name, content in files.items()]
        if folder:
            entries = [entry for entry in entries if entry["path"].startswith(f"{folder}/")]
            if not entries:
                raise _Refused(404, "EntryNotFound", f"{folder} does not exist")
        if "recursive=true" not in self.path.lower():
            depth = len(folder.split("/")) if folder else 0
            folders = {
                "/".join(entry["path"].split("/")[: depth + 1])
                for entry in entries
                if entry["path"].count("/") > depth
            }
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
        self._json(entries)

    def _file(self, repository: Repository, revision: str, name: str) -> None:
        commit = self._commit(repository, revision)
        content = repository.commits[commit].get(name)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"{name} does not exist on {revision}")
        self._send(
            200,
            content,
            {
                "X-Repo-Commit": commit,
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Content-Type": "application/octet-stream",
            },
        )

    # --- writing ---

    def _post(self, parts: list[str]) -> None:
        if parts == ["api", "validate-yaml"]:
            self._validate(json.loads(self.body)["content"])
        elif parts[-1] == "paths-info":
            self._paths(parts)
        elif parts == ["api", "repos", "create"]:
            self._require_writer()
            self._create(json.loads(self.body))
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self._require_writer()
            self._batch(json.loads(self.body))
        elif parts[:2] == ["api", "models"]:
            self._require_writer()
            self._write("/".join(parts[2:4]), parts[4], parts[5])
        else:
            raise _Refused(404, "", "Not found")

    def _validate(self, card: str) -> None:
        values = yaml.safe_load(card.split("---\n")[1])
        errors = (
            [{"message": '"license" must be a string'}] if not isinstance(values.get("license"), str) else []
        )
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _paths(self, parts: list[str]) -> None:
        repository = self._repository(parts[1], "/".join(parts[2:4]))
        files = repository.commits[self._commit(repository, parts[5])]
        wanted = [
            part.partition("=")[2]
            for part in unquote(self.body.decode()).split("&")
            if part.startswith("paths")
        ]
        self._json([_entry(path, files[path]) for path in wanted if path in files])

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = self.hub.repositories.get(f"models/{name}")
        if known is None:
            repository = self.hub.repositories[f"models/{name}"] = Repository(
                private=asked.get("private") is True or asked.get("visibility") == "private"
            )
            repository.commit("main", {".gitattributes": b"*.onnx filter=lfs\n"})
        self._json({"url": f"{self.hub.endpoint}/{name}", "name": name}, 200 if known is None else 409)

    def _write(self, name: str, what: str, revision: str) -> None:
        repository = self._repository("models", name)
        if what == "branch":
            known = revision in repository.branches
            if not known:
                repository.branches[revision] = repository.branches["main"]
            self._json({}, 409 if known else 200)
            return
        self._commit(repository, revision)
        if what == "preupload":
            files = json.loads(self.body)["files"]
            self._json({"files": [_upload_mode(file["path"]) for file in files]})
        elif what == "commit":
            self._apply(name, repository, revision)

    def _batch(self, asked: dict[str, Any]) -> None:
        def action(entry: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{self.hub.endpoint}/objects/{entry['oid']}", "header": {}}
            return {**entry, "actions": {"upload": upload}}

        self._json({"transfer": "basic", "objects": [action(entry) for entry in asked["objects"]]})

    def _put(self, parts: list[str]) -> None:
        if hashlib.sha256(self.body).hexdigest() != parts[1]:
            raise _Refused(400, "", "the content has another SHA-256")
        self.hub.objects[parts[1]] = self.body
        self._json({})

    def _apply(self, name: str, repository: Repository, revision: str) -> None:
        files = dict(repository.commits[self._commit(repository, revision)])
        for line in self.body.decode().splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(revision, files)
        self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}"}
        )


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if name.endswith(LFS):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def _upload_mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(LFS) else "regular", "shouldIgnore": False}


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
