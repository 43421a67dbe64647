"""Servers that the monitor is compared with: the same libraries in the simplest combination.

    python benchmarks/naive.py KIND [THREADS]

KIND is one of:

- `floor`: a constant answer of the documented form, as fast as Falcon, msgspec and waitress allow;
- `kept`: a `Status` call for each request, over one persistent channel for each backend;
- `each`: a `Status` call for each request, over a new channel each time;
- `psutil`: a sample for each request.

Reads the backends from standard input, a line `MODEL PID ADDRESS` each, up to an empty line. Then
prints its port. Ends when standard input is closed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import falcon
import grpc
import msgspec
import psutil
import waitress.server

from monitor_plugin.domain.models import Memory, Sample
from monitor_plugin.rpc.protocol import STATUS_METHOD, load_messages, status_from_wire

THREADS = 8


class Answer(msgspec.Struct):
    """The body of a status, as the documented API has it."""

    state: int
    memory: Memory | None


class Target(NamedTuple):
    """The PID and the gRPC address of a backend."""

    pid: int
    address: str


class Model:
    """A route that answers with a function's result for the model in the query."""

    def __init__(self, targets: dict[str, Target], answer: Callable[[Target], Any]) -> None:
        self._targets = targets
        self._answer = answer

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer a reading's request."""
        target = self._targets[request.get_param("model", required=True)]
        response.data = msgspec.json.encode(self._answer(target))
        response.content_type = falcon.MEDIA_JSON


def floor(target: Target) -> Answer:
    """Return a constant answer."""
    return Answer(2, Memory(1, {"weights": 1}))


def make_kept(targets: dict[str, Target]) -> Callable[[Target], Answer]:
    """Return a function that calls `Status` over a backend's persistent channel."""
    channels = {each.address: grpc.insecure_channel(each.address) for each in targets.values()}
    return lambda target: _status(channels[target.address])


def each(target: Target) -> Answer:
    """Call `Status` over a new channel."""
    with grpc.insecure_channel(target.address) as channel:
        return _status(channel)


def _status(channel: grpc.Channel) -> Answer:
    parse = load_messages()["StatusResponse"].FromString
    response = channel.unary_unary(STATUS_METHOD, None, None)(b"", timeout=10)
    status = status_from_wire(parse(response))
    return Answer(status.state, status.memory)


def sample(target: Target) -> Sample:
    """Sample the process with psutil."""
    process = psutil.Process(target.pid)
    with process.oneshot():
        memory = process.memory_info()
        return Sample(memory.rss, memory.vms, process.memory_percent(), process.cpu_percent())


def main() -> None:
    """Serve until standard input is closed."""
    kind = sys.argv[1]
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else THREADS
    targets: dict[str, Target] = {}
    while line := sys.stdin.readline().strip():
        model, pid, address = line.split()
        targets[model] = Target(int(pid), address)
    answers = {"floor": floor, "each": each, "psutil": sample, "kept": make_kept(targets)}
    app: Any = falcon.App()
    app.add_route("/backend/monitor", Model(targets, answers[kind]))
    server: Any = waitress.server.create_server(
        app, host="127.0.0.1", port=0, threads=threads, asyncore_use_poll=True, ident=None
    )
    print(server.effective_port, flush=True)
    threading.Thread(target=server.run, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
