"""Polls at the start, after events, and at intervals."""

from __future__ import annotations

import logging
import threading

import pytest

from monitor_plugin.hosts.poller import Poller

from ..support import eventually, logged


class Polls:
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


def test_poller_polls_at_once_and_soon_again() -> None:
    """What is not ready at the first poll is found by one of the next."""
    polls = Polls()
    poller = Poller("test", polls)
    poller.start()
    eventually(lambda: polls.count >= 3)
    poller.close()
    before = polls.count
    poller.poll_soon()
    assert polls.count == before


def test_events_during_a_poll_cause_one_more_poll() -> None:
    """They do not cause one poll each."""
    polls = Polls()
    polls.going.clear()
    poller = Poller("test", polls)
    poller.start()
    eventually(lambda: polls.count == 1)
    for _ in range(1000):
        poller.poll_soon()
    polls.going.set()
    eventually(lambda: polls.count >= 2)
    poller.close()
    assert polls.count < 10


def test_wait_ends_with_a_poll_that_began_after_it() -> None:
    """A poll that runs already may have found less; a poll that fails ends the wait too."""
    polls = Polls()
    polls.going.clear()
    polls.fails = True
    poller = Poller("test", polls)
    poller.start()
    eventually(lambda: polls.count == 1)
    counts: list[int] = []

    def wait() -> None:
        poller.wait_for_poll(1000)
        counts.append(polls.count)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    poller.wait_for_poll(0.05)
    assert counts == []
    polls.going.set()
    threads[0].join(60)
    threads[1].join(60)
    assert len(counts) == 2
    assert min(counts) >= 2
    poller.close()
    poller.wait_for_poll(1000)


def test_poller_logs_a_failure_once(caplog: pytest.LogCaptureFixture) -> None:
    """A host that does not answer for a while causes two log lines, and polling goes on."""
    caplog.set_level(logging.INFO, "monitor_plugin")
    polls = Polls()
    polls.fails = True
    poller = Poller("test", polls)
    poller.start()
    eventually(lambda: polls.count >= 2)
    polls.fails = False
    eventually(lambda: len(logged(caplog)) == 2)
    poller.close()
    assert logged(caplog) == ["test: no such host", "test: it works again"]
