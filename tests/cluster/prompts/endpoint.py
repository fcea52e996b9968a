"""A chat endpoint on this machine, over real HTTP."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-secret-of-the-test"


class Endpoint:
    """OpenAI-compatible: `answer` makes the text from the messages, or a status."""

    def __init__(self, answer: Callable[[list[dict[str, str]]], str | int]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                endpoint.keys.add(self.headers["Authorization"])
                assert self.path == "/v1/chat/completions"
                said = answer(body["messages"])
                status = said if isinstance(said, int) else 200
                message = {"role": "assistant", "content": said}
                whole = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
                whole["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
                wrong = {"error": {"message": f"no: {self.headers['Authorization']}"}}
                data = json.dumps(whole if status == 200 else wrong).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
