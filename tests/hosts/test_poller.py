"""Looking at a host: at the start, after hints, and in between."""

from __future__ import annotations

import logging
import threading

import pytest

from monitor_plugin.hosts.poller import Poller

from ..support import eventually, logged


class Looks:
    def __init__(self) -> None:
        self.count = 0
        self.fails = False
        self.going = threading.Event()
        self.going.set()

    def __call__(self) -> None:
        self.count += 1
        self.going.wait(30)
        if self.fails:
            raise OSError("no such host")


def test_a_look_comes_at_once_and_soon_again() -> None:
    """What is not ready at the first look is seen at one of the next."""
    looks = Looks()
    follower = Poller("test", looks)
    follower.start()
    eventually(lambda: looks.count >= 3)
    follower.close()
    before = looks.count
    follower.hint()
    assert looks.count == before


def test_many_hints_are_one_look() -> None:
    """Hints that come while a look is under way bring one look, not one each."""
    looks = Looks()
    looks.going.clear()
    follower = Poller("test", looks)
    follower.start()
    eventually(lambda: looks.count == 1)
    for _ in range(1000):
        follower.hint()
    looks.going.set()
    eventually(lambda: looks.count >= 2)
    follower.close()
    assert looks.count < 10


def test_a_failure_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """A host that does not answer for a while costs two lines, and looks go on."""
    caplog.set_level(logging.INFO, "monitor_plugin")
    looks = Looks()
    looks.fails = True
    follower = Poller("test", looks)
    follower.start()
    eventually(lambda: looks.count >= 2)
    looks.fails = False
    eventually(lambda: len(logged(caplog)) == 2)
    follower.close()
    assert logged(caplog) == ["test: no such host", "test: it works again"]
