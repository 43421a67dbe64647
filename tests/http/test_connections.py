"""Accepting connections where the process has no descriptor left, with a stub for the server."""

from __future__ import annotations

import errno
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from monitor_plugin.http.server.connections import Connections

from ..support import logged


class IdleChannel:
    """A connection that has been quiet for long; counts how often it is closed."""

    quiet_since = 0.0
    is_answering = False
    buffered_bytes = 0
    closed = 0

    def handle_close(self) -> None:
        self.closed += 1


def test_accepting_pauses_where_descriptors_run_out(caplog: pytest.LogCaptureFixture) -> None:
    """A process without descriptors says so once, and accepts again when it has some."""
    answers: list[object] = [errno.EMFILE, errno.EMFILE, "accepted", errno.ENFILE, errno.EBADF]

    def accept() -> object:
        answer = answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    idle = IdleChannel()
    server: Any = SimpleNamespace(
        active_channels={1: idle}, accept=accept, handle_accept=lambda: None
    )
    connections = Connections(server, "127.0.0.1:1", idle_seconds=1e9)
    with caplog.at_level(logging.WARNING):
        for accepted, evicted in ((None, 1), (None, 2), ("accepted", 2), (None, 3)):
            assert server.accept() == accepted
            connections.evict()
            assert idle.closed == evicted
    said = "no connection is accepted on 127.0.0.1:1 for now: "
    assert logged(caplog) == [
        f"{said}[Errno 24] Too many open files",
        f"{said}[Errno 23] Too many open files in system",
    ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        server.accept()
