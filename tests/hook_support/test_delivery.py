"""A bounded queue of messages: tried again, lost oldest first, and closed in time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin.hook_support import delivery as send_queue
from monitor_plugin.hook_support.delivery import NotSent, SendQueue

from ..support import eventually, refuse_thread

_logger = logging.getLogger("a hook")


class Receiver:
    """Records messages; first raises each of `faults`, and blocks while it is not `open`."""

    def __init__(self) -> None:
        self.tried: list[int] = []
        self.sent: list[int] = []
        self.faults: list[Exception] = []
        self.open = threading.Event()
        self.open.set()

    def send(self, message: int) -> None:
        self.tried.append(message)
        self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.sent.append(message)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def make_queue(receiver: Receiver) -> Iterator[Callable[..., SendQueue[int]]]:
    """Makes queues to the receiver, and closes them after the test."""
    queues: list[SendQueue[int]] = []

    def make(**options: Any) -> SendQueue[int]:
        given = {"size": 1000, "attempts": 3, "pause_seconds": 0.01, **options}
        queue = SendQueue(
            receiver.send, "the receiver", _logger, interrupt=receiver.open.set, **given
        )
        queues.append(queue)
        return queue

    yield make
    receiver.open.set()
    for queue in queues:
        queue.close()


def text(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "a hook"]


def test_messages_are_sent_in_order(
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also messages from before the start; nothing is logged."""
    queue = make_queue()
    queue.put(1)
    queue.start()
    for message in (2, 3):
        queue.put(message)
    eventually(lambda: receiver.sent == [1, 2, 3])
    assert text(caplog) == []


def test_failed_message_is_retried(
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next message waits; the log reports the failure once, and the recovery once."""
    receiver.faults = [NotSent("busy"), NotSent("busy")]
    queue = make_queue()
    queue.start()
    queue.put(1)
    queue.put(2)
    eventually(lambda: receiver.sent == [1, 2])
    assert receiver.tried == [1, 1, 1, 2]
    eventually(lambda: len(text(caplog)) == 2)
    assert text(caplog) == [
        "the receiver: an event could not be sent: busy",
        "the receiver: events are sent again, and the queue is empty; 0 were lost",
    ]


@pytest.mark.parametrize(
    ("faults", "tries"),
    [([NotSent("no", again=False)], 1), ([NotSent("no")] * 3, 3), ([OverflowError("no")] * 3, 3)],
    ids=["that is final", "that lasts", "that nobody foresaw"],
)
def test_message_is_given_up_after_its_attempts(
    faults: list[Exception],
    tries: int,
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A final failure, or the last try, gives the message up; the next message is sent."""
    receiver.faults = list(faults)
    queue = make_queue()
    queue.start()
    queue.put(1)
    queue.put(2)
    eventually(lambda: receiver.sent == [2])
    assert receiver.tried == [1] * tries + [2]
    eventually(lambda: len(text(caplog)) == 3)
    assert text(caplog)[2].endswith("; 1 were lost")


def test_pauses_grow_and_are_as_long_as_the_receiver_wants(
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pause doubles after each try, and is at least as long as the receiver demands."""
    queue = make_queue(attempts=5, pause_seconds=1.0)
    pauses: list[float] = []
    monkeypatch.setattr(queue._closed, "wait", pauses.append)
    receiver.faults = [NotSent("no"), NotSent("no", after_seconds=30), NotSent("no"), NotSent("")]
    queue.start()
    queue.put(1)
    eventually(lambda: receiver.sent == [1])
    assert pauses == [1, 30, 4, 8]


def test_full_queue_drops_the_oldest_message(
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`put` does not block; the log reports the first lost message, and later their number."""
    receiver.open.clear()
    queue = make_queue(size=3)
    queue.start()
    queue.put(0)
    eventually(lambda: receiver.tried == [0])
    for message in range(1, 11):
        queue.put(message)
    receiver.open.set()
    eventually(lambda: receiver.sent == [0, 8, 9, 10])
    eventually(lambda: len(text(caplog)) == 2)
    assert "the queue is full, with 3" in text(caplog)[0]
    assert text(caplog)[1].endswith("; 7 were lost")


def test_lost_messages_are_counted_in_the_log(
    make_queue: Callable[..., SendQueue[int]], receiver: Receiver
) -> None:
    """The number is logged once the queue is empty, not after each message."""
    sent_by_then = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith("were lost"):
                sent_by_then.append([*receiver.sent])

    handler = Notes()
    _logger.addHandler(handler)
    try:
        queue = make_queue(size=3)
        for message in range(5):
            queue.put(message)
        queue.start()
        eventually(lambda: sent_by_then)
    finally:
        _logger.removeHandler(handler)
    assert sent_by_then == [[2, 3, 4]]


def test_closing_sends_what_waits(
    make_queue: Callable[..., SendQueue[int]], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each queued message is tried once, without a pause."""
    monkeypatch.setattr(send_queue, "_CLOSE_SECONDS", 30.0)
    receiver.faults = [NotSent("busy")]
    queue = make_queue(pause_seconds=1000)
    queue.start()
    for message in (1, 2, 3):
        queue.put(message)
    eventually(lambda: receiver.tried == [1])
    queue.close()
    assert receiver.sent == [2, 3]


def test_closing_ends_a_send_that_hangs(
    make_queue: Callable[..., SendQueue[int]],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The thread ends, and the log says what was lost."""
    receiver.open.clear()
    receiver.faults = [NotSent("interrupted")]
    queue = make_queue()
    queue.start()
    for message in (1, 2, 3):
        queue.put(message)
    eventually(lambda: receiver.tried == [1])
    queue.close()
    eventually(lambda: not queue._thread.is_alive())
    assert receiver.sent == []
    assert any("the receiver: closed; " in line for line in text(caplog))


def test_queue_whose_thread_cannot_start_can_be_closed_or_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was queued meanwhile is sent after the start."""
    sent: list[str] = []
    queue = SendQueue(
        sent.append,
        "the receiver",
        logging.getLogger("a sender"),
        size=10,
        attempts=1,
        pause_seconds=0.0,
        interrupt=lambda: None,
    )

    with monkeypatch.context() as patch:
        refuse_thread(patch)
        with pytest.raises(RuntimeError):
            queue.start()
    queue.put("a")
    queue.start()
    eventually(lambda: sent == ["a"])
    queue.close()
