"""A small Hugging Face hub on this machine: as much of its API as huggingface_hub asks for, over folders of files.

with serving(Hub()) as hub:
    hub.add("lab/model", COMMIT, folder)
    environment = hub.environment(cache)      # for a process of its own: huggingface_hub reads it when imported
"""

import json
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT, OTHER, LATER = "0123456789abcdef0123456789abcdef01234567", "f" * 40, "e" * 40
GATED_401, GATED_403, DENIED, HUGE = "gated/model", "forbidden/model", "denied/model", "huge/model"
HUGE_BYTES = 10**16  # more than any disk has


@dataclass
class Hub:
    """What it serves, and what it was asked for."""

    address: str = ""
    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)  # id → commit → folder; the last is newest
    sent: list[tuple[str, int]] = field(default_factory=list)  # files, and from which byte on
    resets: set[str] = field(default_factory=set)  # files whose next download ends half-way by a reset connection
    drops: set[str] = field(default_factory=set)  # … by a closed one

    def add(self, repository: str, commit: str, folder: Path) -> None:
        self.repositories.setdefault(repository, {})[commit] = folder

    @property
    def files(self) -> Counter[str]:
        """How often each file was sent."""
        return Counter(name for name, _ in self.sent)

    def environment(self, cache: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Listings of commits, what a repository is, and files, whole or from a byte on."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|auth-check)(?:/([^/]+))?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None:  # what huggingface_hub asks beside
            self.refuse(404, "")
            return
        repository, commits = found[1], self.hub.repositories.get(found[1])
        revision = (found[3] if api else found[2]) or "main"
        if repository == DENIED:  # a token that isn't one
            self.refuse(401, "")
        elif repository in (GATED_401, GATED_403):
            self.refuse(401 if repository == GATED_401 else 403, "GatedRepo")
        elif commits is None:
            self.refuse(404, "RepoNotFound")
        elif (commit := [*commits][-1] if revision == "main" else revision) not in commits:
            self.refuse(404, "RevisionNotFound")
        elif file:
            self.send_file(commits[commit], commit, file[3], body)
        elif api and api[2] == "auth-check":
            self.send_json({}, commit)
        elif api and api[2] == "tree":
            files = [one for one in sorted(commits[commit].rglob("*")) if one.is_file()]
            self.send_json([self.entry(repository, commits[commit], one) for one in files], commit)
        else:
            self.send_json({"id": repository, "sha": commit, "siblings": []}, commit)

    def entry(self, repository: str, folder: Path, file: Path) -> dict[str, Any]:
        size = HUGE_BYTES if repository == HUGE and file.suffix == ".safetensors" else file.stat().st_size
        found = {"type": "file", "path": str(file.relative_to(folder)), "size": size, "oid": "0" * 40}
        return found | ({"lfs": {"oid": "0" * 64, "size": size, "pointerSize": 130}} if size == HUGE_BYTES else {})

    def send_file(self, folder: Path, commit: str, name: str, body: bool) -> None:
        content = (folder / name).read_bytes()
        size = HUGE_BYTES if self.hub.repositories.get(HUGE, {}).get(commit) == folder and "safe" in name else None
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        begin = int(start[1]) if start else 0
        if body:
            self.hub.sent.append((name, begin))
        half = body and name in self.hub.resets | self.hub.drops
        part = content[begin : len(content) // 2] if half else content[begin:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_headers(size or len(content) - begin, f'"{abs(hash((name, content))):x}"', commit)
        if not body:
            return
        self.wfile.write(part)
        if half:
            self.wfile.flush()
            self.close_connection = True
            if name in self.hub.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)  # and with it the connection is reset, not ended
            self.hub.resets.discard(name)
            self.hub.drops.discard(name)

    def send_json(self, content: Any, commit: str) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_headers(len(text), '"listing"', commit)
        self.wfile.write(text)

    def send_headers(self, length: int, tag: str, commit: str) -> None:
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass
