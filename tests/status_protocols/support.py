"""What the tests of the protocols share."""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from monitor_plugin import Status
from monitor_plugin.status_protocols.protocol import BusyWhen, HttpProtocol

from ..recorded_servers import RECORDED, ModelServer, recorded


class Clock:
    """The clock by which rates are measured."""

    now = 0.0


def read(
    server: ModelServer,
    protocol: type[HttpProtocol],
    model: str = "tiny",
    busy_when: BusyWhen = "any",
) -> Status:
    """Read the server once, by a new object."""
    return protocol(model, busy_when).read(server.get())


def replay(server: ModelServer, folder: str, state: str) -> None:
    """Let the server answer as a recorded one."""
    server.replies = recorded(folder, state)


class RecordedCalls:
    """Answers gRPC calls as recorded; a request for another model than `model` is for `unknown`."""

    def __init__(self, folder: str, state: str, model: str = "") -> None:
        self._folder = RECORDED / folder
        self._state = state
        self._model = model
        self.requests: list[tuple[str, bytes]] = []

    def call(self, path: str, request: bytes) -> bytes:
        self.requests.append((path, request))
        is_unknown = request and StringValue.FromString(request).value != self._model
        name = path.strip("/").replace("/", "-") + ("-unknown" if is_unknown else "")
        first, _, rest = (self._folder / f"{self._state}-{name}.txt").read_text().partition("\n")
        if first == "GRPC OK":
            return bytes.fromhex(rest)
        raise RecordedError(first.removeprefix("GRPC "))


class RecordedError(grpc.RpcError):
    """A call that failed."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self._code = grpc.StatusCode[code]

    def code(self) -> grpc.StatusCode:
        return self._code
