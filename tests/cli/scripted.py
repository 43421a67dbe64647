"""An HTTP server whose answers a test decides, for what a real monitor gives rarely."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit


class Request(NamedTuple):
    """A request: its method, its path, its query and its decoded body."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None


class Scripted:
    """Answers each request as `answer` decides, with a status and an object for JSON.

    Attributes:
        url: where it listens while it is entered.
        requests: the requests, in the order of their arrival.
    """

    def __init__(self, answer: Callable[[Request], tuple[int, Any]], port: int = 0) -> None:
        self.requests: list[Request] = []
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = dict(parse_qsl(url.query, keep_blank_values=True))
                decoded = json.loads(body) if body else None
                request = Request(self.command, url.path, query, decoded)
                scripted.requests.append(request)
                status, value = answer(request)
                encoded = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def failure(type: str, message: str = "no", code: int = 500) -> tuple[int, Any]:
    """Return an answer with a monitor's error."""
    return code, {"error": {"code": code, "message": message, "type": type}}
