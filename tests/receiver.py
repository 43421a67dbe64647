"""A real HTTP server that receives webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import socketserver
import ssl
import threading
import time
from email.message import Message
from types import TracebackType
from typing import Any, NamedTuple


class Post(NamedTuple):
    """A request, and its time by the monotonic clock."""

    path: str
    headers: Message
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def is_signed(self, key: bytes) -> bool:
        """Whether the signature is valid by the specification of standardwebhooks.com."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        digest = hmac.digest(key, signed + self.body, hashlib.sha256)
        return str(self.headers["webhook-signature"]) == f"v1,{base64.b64encode(digest).decode()}"


class Receiver:
    """Records the requests that it receives; responds with 204, or the next of `answers`.

    Attributes:
        answers: status and headers of the next responses.
        open: while cleared, no response is sent.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.posts: list[Post] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.open = threading.Event()
        self.open.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append(Post(self.path, self.headers, body, time.monotonic()))
                receiver.open.wait(60)
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # such as a client that does not trust the certificate, or has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, type: str) -> list[dict[str, Any]]:
        """Return the received events of a type."""
        return [post.json for post in list(self.posts) if post.json["type"] == type]
