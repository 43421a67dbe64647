"""The host is looked at after each hint, some times more, and now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from monitor_plugin.hosts import synchroniser
from monitor_plugin.hosts.synchroniser import Synchroniser

from .support import eventually


@pytest.fixture
def make() -> Iterator[Callable[..., Synchroniser]]:
    made = []

    def make(synchronise: Callable[[], None], seconds: float = 1000) -> Synchroniser:
        made.append(Synchroniser(synchronise, seconds))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the follow-ups out."""
    monkeypatch.setattr(synchroniser, "_FOLLOW_UP_SECONDS", (0.0,))


def test_the_first_look_and_its_follow_ups(
    make: Callable[..., Synchroniser], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the start, and as often again as there are follow-ups, but not twice for one."""
    monkeypatch.setattr(synchroniser, "_FOLLOW_UP_SECONDS", (0.0, 0.15, 0.3))
    looks: list[float] = []
    make(lambda: looks.append(time.monotonic()))
    eventually(lambda: len(looks) == 3)
    assert looks[2] - looks[0] >= 0.25


@pytest.mark.usefixtures("once")
def test_hints_are_answered_together(make: Callable[..., Synchroniser]) -> None:
    """However many hints come while it looks, it looks once more, and then no more."""
    looking, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def look() -> None:
        looking.release()
        go_on.acquire()

    each = make(look)
    assert looking.acquire(timeout=30)
    for _ in range(1000):
        each.hint()
    go_on.release()
    assert looking.acquire(timeout=30)
    go_on.release()
    assert not looking.acquire(timeout=0.5)
    go_on.release()


@pytest.mark.usefixtures("once")
def test_now_and_then(make: Callable[..., Synchroniser]) -> None:
    """It looks without hints too, at its interval, and after one that failed."""
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        raise RuntimeError("it failed")

    make(look, 0.15)
    eventually(lambda: len(looks) == 3)


def test_closing(make: Callable[..., Synchroniser]) -> None:
    """Closed, it looks no more; and one that hangs does not hold up the end for long."""
    release = threading.Event()
    hung = make(lambda: release.wait() and None)
    before = time.monotonic()
    hung.close()
    assert time.monotonic() - before < 20
    release.set()
    looks: list[int] = []
    each = make(lambda: looks.append(1))
    eventually(lambda: looks)
    each.close()
    seen = len(looks)
    each.hint()
    assert not each._thread.is_alive()
    assert len(looks) == seen
