"""The Open Inference Protocol over gRPC: the recorded answers of MLServer.

tests/hooks/test_kserve_status.py has a real server.
"""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols import kserve_grpc

from .support import RecordedCalls


@pytest.mark.parametrize(
    ("state", "model", "expected"),
    [
        ("ready", "tiny", State.READY),
        ("loading", "tiny", State.UNINITIALIZED),
        ("ready", "unknown", State.UNINITIALIZED),
    ],
)
def test_recorded_server(state: str, model: str, expected: State) -> None:
    calls = RecordedCalls("mlserver", state, "tiny")
    assert kserve_grpc.ask(model, calls.call) == Status(expected)
