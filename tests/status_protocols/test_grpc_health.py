"""grpc.health.v1 as etcd answers it. tests/hooks/test_grpc_health.py has a real server."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from monitor_plugin import State, Status
from monitor_plugin.status_protocols import grpc_health

from .support import RecordedCalls


def test_recorded_server_is_ready() -> None:
    """The request is for the server as a whole, whatever the backend's model is."""
    calls = RecordedCalls("etcd", "ready")
    assert grpc_health.ask("etcd", calls.call) == Status(State.READY)
    assert calls.requests == [("/grpc.health.v1.Health/Check", b"")]


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (0, None),
        (1, Status(State.READY)),
        (2, Status(State.UNINITIALIZED)),
        (3, None),
        (99, None),
        (-1, None),
    ],
)
def test_status_follows_from_the_health_of_the_service(health: int, status: Status | None) -> None:
    requests = []

    def call(path: str, request: bytes) -> bytes:
        requests.append(StringValue.FromString(request).value)
        response: bytes = Int32Value(value=health).SerializeToString()
        return response

    assert grpc_health.ask("m", call, "a service") == status
    assert requests == ["a service"]
