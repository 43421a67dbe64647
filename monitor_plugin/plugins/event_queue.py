"""Hooks that only tell, delivered one at a time and in order, off the threads that have work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .executor import HookExecutor

_CLOSE_SECONDS = 5.0


class Delivery(NamedTuple):
    """An event on its way: the hook, its arguments, and what is set once it was delivered."""

    hook: str
    arguments: Mapping[str, Any]
    done: threading.Event


class EventQueue:
    """A queue of events and the thread that delivers them.

    Args:
        executor: calls the implementations.
        timeout_seconds: how long one implementation may take, and how long a publisher waits.
        log: writes lines of what happens, before implementations learn of it.
    """

    def __init__(
        self,
        executor: HookExecutor,
        timeout_seconds: float,
        log: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._executor = executor
        self._log = log
        self._timeout_seconds = timeout_seconds
        self._queue: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start delivering, what was published before first."""
        self._thread = threading.Thread(target=self._run, name="monitor-events", daemon=True)
        self._thread.start()

    def publish(self, hook: str, **arguments: Any) -> Delivery | None:
        """Queue an event, which never blocks; None where nobody implements the hook."""
        delivery = Delivery(hook, arguments, threading.Event())
        self._queue.put(delivery)
        return delivery if self._executor.implementations(hook) else None

    def wait(self, delivery: Delivery | None) -> None:
        """Wait until an event was delivered, at most `timeout_seconds`; a hook never waits."""
        if delivery and self._thread and not self._executor.on_hook_thread():
            delivery.done.wait(self._timeout_seconds)

    def close(self) -> None:
        """Deliver what is queued, within bounds, and end the thread."""
        thread, self._thread = self._thread, None
        self._queue.put(None)
        if thread and not self._executor.on_hook_thread():
            thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while delivery := self._queue.get():
            self._log(delivery.hook, delivery.arguments)
            self._executor.call(delivery.hook, self._timeout_seconds, delivery.arguments)
            delivery.done.set()
