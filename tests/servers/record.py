"""Records what the real servers answer: `python -m tests.servers.record [NAME...]`.

Each server has its folder `tests/recorded/NAME/`, whose answers `make test` replays. The file
`tests/recorded/README.md` says what is in the files.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from ..support import Spawner, eventually
from .servers import INSTALLED, ROOT, SERVERS, LlamaCpp, MlServer, Server

RECORDED = ROOT / "tests" / "recorded"
# Lines of Prometheus metrics that are left out: vLLM has 600.
LEFT_OUT = re.compile(
    rb"^.*(_bucket\{|_created[ {]|^(# \w+ )?(python|process|http)_).*\n", re.MULTILINE
)


def http_answer(server: Server, route: str) -> bytes:
    """Return what a route answers, as it is recorded."""
    status, headers, body = server.get(route)
    if route == "/metrics":
        body = LEFT_OUT.sub(b"", body)
    for folder in (server.folder, INSTALLED, INSTALLED.resolve()):  # paths of this machine
        body = body.replace(bytes(folder), b"/models")
    body = re.sub(rb'"/[^" ]*/llama-server"', b'"/usr/bin/llama-server"', body)
    lines = [f"HTTP {status}"]
    for name, value in headers:
        known = str(len(body)) if name.lower() == "content-length" else value
        lines.append(f"{name}: {known}")
    lines += ["", ""]
    return "\n".join(lines).encode() + body


def grpc_answer(server: Server, method: str, request: bytes) -> bytes:
    """Return what a gRPC method answers, as it is recorded."""
    channel: Any = grpc.insecure_channel(server.grpc_address)  # without serializers: bytes
    with channel:
        try:
            answer: bytes = channel.unary_unary(f"/{method}")(request, timeout=60)
        except grpc.RpcError as error:
            return f"GRPC {error.code().name}\n{error.details()}\n".encode()
        return f"GRPC OK\n\n{answer.hex()}".encode()


def answers(server: Server) -> dict[str, bytes]:
    """Return what each route and method answers, by the name of its file."""
    found = {name_of(route): http_answer(server, route) for route in server.routes}
    for name, request in server.methods.items():
        found[name_of(name)] = grpc_answer(server, name.partition("-")[0], request)
    return found


def name_of(route: str) -> str:
    """Return a route as a part of a file's name."""
    return route.strip("/").replace("/", "-").replace("?", "-").replace("=", "-")


def without_headers(answer: bytes) -> tuple[bytes, bytes]:
    """Return the first line and the body of an answer: its date is always another one."""
    head, _, body = answer.partition(b"\n\n")
    return head.partition(b"\n")[0], body


def loading_answers(server: Server) -> dict[str, bytes]:
    """Return the answers while a server loads; none of one that refuses connections until then."""
    if isinstance(server, MlServer):
        eventually(lambda: server.status_of("/v2/health/live"))
        found = answers(server)
        server.loaded.touch()
        return found
    if type(server) is LlamaCpp:
        eventually(lambda: server.process.poll() is not None or server.status_of("/health"))
        answer = http_answer(server, "/health")
        assert answer.startswith(b"HTTP 503"), "the model was loaded before its loading was seen"
        return {"any-route": answer}
    return {}


def record(server: Server, spawner: Spawner) -> None:
    """Start a server, and write what it answers in each state.

    What it answers while it is busy, and after, is written where it is not what it answered before.
    """
    folder = RECORDED / server.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.txt"):
        path.unlink()
    server.start(spawner)
    found = {"loading": loading_answers(server)}
    server.await_ready()
    (folder / "VERSION").write_text(f"{server.version}, recorded from a running server\n")
    found["ready"] = answers(server)
    with server.busy():
        time.sleep(1.5)  # vLLM brings its figures up to date when it ends a step
        found["busy"] = answers(server)
    time.sleep(1.5)
    found["after"] = answers(server)
    for state, files in found.items():
        for name, answer in files.items():
            ready = found["ready"].get(name, b"")
            if state in ("loading", "ready") or without_headers(answer) != without_headers(ready):
                (folder / f"{state}-{name}.txt").write_bytes(answer)


def main(names: list[str]) -> None:
    """Record the named servers, or all."""
    for each in SERVERS:
        if not names or each.name in names:
            with tempfile.TemporaryDirectory() as folder:
                spawner = Spawner()
                try:
                    record(each(Path(folder)), spawner)
                finally:
                    spawner.close()
            print(f"recorded {each.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
