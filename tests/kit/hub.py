"""
A hub of data sets on the loopback interface: the two paths that are asked of the real one, and its manners.

    with Hub() as hub:
        hub.put("org/rows", {"train.jsonl": b"..."})
        HuggingFaceHub(hub.endpoint, 1 << 20).find("org/rows", None)

`hub.asked` has every path that anybody asked for. `hub.answers` puts another answer in a path's place.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Answer = Callable[[BaseHTTPRequestHandler], None]
LARGE = 100
"""Files of so many bytes and more are kept apart, as the real hub keeps them: behind a redirect."""


def status(code: int, word: str = "", **headers: str) -> Answer:
    """An answer without a body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in {"X-Error-Code": word, **headers}.items():
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(data: bytes, **headers: str) -> Answer:
    """An answer with this body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


class Hub:
    """A server of data sets, each with its history of commits."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.heads: dict[str, str] = {}
        self.commits: dict[tuple[str, str], Mapping[str, bytes]] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        hub = self
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """A new commit with these files."""
        told = hashlib.sha256()
        for path, data in sorted(files.items()):
            told.update(path.encode() + b"\0" + data)
        commit = told.hexdigest()[:40]
        self.commits[name, commit] = dict(files)
        self.heads[name] = commit
        return commit

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.asked.append(path)
        answer = self.answers.get(path) or self._found(path)
        answer(handler)

    def _found(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) in (4, 6):
            name = "/".join(parts[2:4])
            commit = parts[5] if len(parts) == 6 else self.heads.get(name, "")
            if (name, commit) in self.commits:
                return body(json.dumps(self.listing(name, commit)).encode())
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            name, commit, inside = "/".join(parts[1:3]), parts[4], "/".join(parts[5:])
            data = self.commits.get((name, commit), {}).get(inside)
            if data is not None:
                if len(data) < LARGE:
                    return body(data)
                return status(302, Location=f"/store/{name}/{commit}/{inside}")
        elif parts[0] == "store":
            return body(self.commits["/".join(parts[1:3]), parts[3]]["/".join(parts[4:])])
        return status(404, "RepoNotFound")

    def listing(self, name: str, commit: str) -> dict[str, Any]:
        """What the hub tells of a data set at a commit."""
        siblings = []
        for path, data in self.commits[name, commit].items():
            each: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "0" * 40}
            if len(data) >= LARGE:
                digest = hashlib.sha256(data).hexdigest()
                each["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(each)
        return {"_id": "0", "id": name, "sha": commit, "gated": False, "private": False, "siblings": siblings}
