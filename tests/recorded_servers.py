"""A real HTTP server that answers as model servers do, from tests/recorded/ or as a test says."""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from monitor_plugin.status_protocols.protocol import Answer, Get

RECORDED = Path(__file__).parent / "recorded"


class Reply(NamedTuple):
    """What the server answers to one path."""

    status: int = 200
    content_type: str = ""
    body: bytes = b""


NOT_FOUND = Reply(404, "application/json", b'{"detail":"Not Found"}')


def json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, "application/json", json.dumps(value).encode())


def text_reply(text: str, status: int = 200) -> Reply:
    return Reply(status, "text/plain; version=0.0.4", text.encode())


def recorded(server: str, state: str) -> dict[str, Reply]:
    """Return what a server answers in a state, by the name of the file: the route with dashes.

    Routes without a file for the state answer as in `ready`. Of a server that is loading, there is
    nothing else than its files.
    """
    replies: dict[str, Reply] = {}
    for each in ("ready", state) if state in ("busy", "after", "failed") else (state,):
        for path in sorted((RECORDED / server).glob(f"{each}-*.txt")):
            head, _, body = path.read_bytes().partition(b"\n\n")
            first, *headers = head.decode().split("\n")
            if not first.startswith("HTTP "):
                continue  # an answer by gRPC
            fields = dict(line.lower().split(": ", 1) for line in headers if ": " in line)
            reply = Reply(int(first.split()[1]), fields.get("content-type", ""), body)
            replies[path.stem.removeprefix(f"{each}-")] = reply
    assert replies
    return replies


def find_reply(replies: dict[str, Reply], path: str) -> Reply | None:
    """Return the answer to a path, which may be there by its name of a recorded file."""
    name = re.sub("[/?=]", "-", path.strip("/").replace("&autoload=false", ""))
    found = (replies[each] for each in (path, name, "any-route") if each in replies)
    return next(found, None)


class ModelServer:
    """Answers GET requests on a port of loopback.

    Attributes:
        replies: the answers by path, with its query, or by the path with dashes as the names of
            recorded files; `any-route` is that of all others. Without it they are not found.
        requests: the paths that were requested.
    """

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                server.requests.append(self.path)
                reply = find_reply(server.replies, self.path) or NOT_FOUND
                self.send_response(reply.status)
                if reply.content_type:
                    self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.port = self._server.server_port
        self._client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self) -> Get:
        """Begin a reading: return what requests a path, each of them once."""
        answers: dict[str, Answer] = {}

        def get(path: str) -> Answer:
            if path not in answers:
                self._client.request("GET", path)
                response = self._client.getresponse()
                content_type = response.headers.get("Content-Type", "").partition(";")[0].lower()
                answers[path] = Answer(path, response.status, content_type, response.read())
            return answers[path]

        return get

    def close(self) -> None:
        self._client.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
