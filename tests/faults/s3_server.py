"""A real S3 server in a process of its own, moto's; a proxy before it counts requests and answers some itself."""

import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

USER = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}
_ANSWER = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """moto's S3 server as its own process."""

    def __init__(self) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        program = str(Path(sys.executable).with_name("moto_server"))
        self.process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


# Of a request's kind and headers: the status and code of an answer, seconds in which none comes, CUT: the connection is
# reset amid the answer, or None: it goes on.
CUT = "cut"
Trouble = Callable[[str, Mapping[str, str]], tuple[int, str] | float | str | None]


class Proxy:
    """Between clients and an S3 server: `counts` has the requests by kind (LIST, GET, HEAD, PUT, DELETE, …)."""

    def __init__(self, endpoint: str, trouble: Trouble = lambda kind, headers: None) -> None:
        self.counts = Counter[str]()
        self.trouble = trouble
        place, lock, proxy = urlsplit(endpoint).netloc, Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self._body()
                kind = _kind(self.command, self.path)
                with lock:
                    proxy.counts[kind] += 1
                    found = proxy.trouble(kind, self.headers)
                if isinstance(found, float):
                    time.sleep(found)
                    self.close_connection = True
                    return
                if found is not None and not isinstance(found, str):
                    status, code = found
                    self._answer(status, [("Content-Type", "application/xml")], _ANSWER.format(code=code).encode())
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                self._connect()
                self.server_side.request(self.command, self.path, body or None, headers)
                response = self.server_side.getresponse()
                content = response.read()
                kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
                length = response.getheader("Content-Length") if self.command == "HEAD" else None
                self._answer(response.status, kept, content, length, cut=found == CUT)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

            def _connect(self) -> None:
                if not hasattr(self, "server_side"):
                    self.server_side = HTTPConnection(place, timeout=60)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                content: bytes,
                length: str | None = None,
                *,
                cut: bool = False,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:  # with a timeout of 0 closing is a reset
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def taken(self) -> Counter[str]:
        """The requests since it was asked last."""
        taken, self.counts = self.counts, Counter()
        return taken

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _kind(method: str, path: str) -> str:
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if method == "GET" and ("list-type" in query or re.fullmatch(r"/[^/]*/?", urlsplit(path).path)):
        return "LIST"
    if method == "POST":
        return "DELETE many" if "delete" in query else "POST uploads"
    return method
