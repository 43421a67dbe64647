"""Accepting connections where the process has no descriptor left, with a stub for the server."""

from __future__ import annotations

import errno
import logging
import os
import time
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


class AnsweringChannel:
    """A connection whose request thread begins to write between any two looks of the loop."""

    is_answering = True
    buffered_bytes = 0
    closed = 0

    def __init__(self) -> None:
        self._looks = 0

    def _answer_begun(self) -> bool:
        self._looks += 1
        return self._looks > 1

    @property
    def quiet_since(self) -> float:
        return time.monotonic() if self._answer_begun() else 0.0

    @property
    def has_unread_answer(self) -> bool:
        return self._answer_begun()

    def handle_close(self) -> None:
        self.closed += 1


def test_an_answer_that_begins_during_a_look_is_not_cut_off() -> None:
    """An answer that is not yet sent, and the time before it, are never taken together."""
    channel = AnsweringChannel()
    server: Any = SimpleNamespace(
        active_channels={1: channel}, accept=lambda: None, handle_accept=lambda: None
    )
    Connections(server, "127.0.0.1:1", idle_seconds=60).evict()
    assert not channel.closed
