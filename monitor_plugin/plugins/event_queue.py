"""Calls the hooks that report events: one at a time, in order, on one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .executor import HookCall, HookExecutor

_CLOSE_SECONDS = 5.0


class Delivery(NamedTuple):
    """A queued call of a hook; `done` is set after all implementations were called."""

    hook: str
    arguments: Mapping[str, Any]
    done: threading.Event


class EventQueue:
    """A queue of events and the thread that delivers them.

    Args:
        timeout_seconds: the time limit of each implementation, and of `wait`.
        log: is called with the hook and the arguments before each delivery.
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
        """Start the thread, which first delivers the events that are already queued."""
        thread = threading.Thread(target=self._run, name="monitor-events", daemon=True)
        thread.start()
        self._thread = thread

    def publish(self, hook: str, **arguments: Any) -> Delivery | None:
        """Queue an event without blocking; return None if the hook has no implementation."""
        delivery = Delivery(hook, arguments, threading.Event())
        self._queue.put(delivery)
        return delivery if self._executor.implementations(hook) else None

    def wait(self, delivery: Delivery | None) -> None:
        """Wait for a delivery, up to `timeout_seconds`; on a worker thread do not wait."""
        if delivery and self._thread and not self._executor.on_hook_thread():
            delivery.done.wait(self._timeout_seconds)

    def close(self) -> None:
        """Deliver the queued events, for at most 5 s, and end the thread."""
        thread, self._thread = self._thread, None
        if thread:
            self._queue.put(None)
            if not self._executor.on_hook_thread():
                thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while delivery := self._queue.get():
            self._log(delivery.hook, delivery.arguments)
            self._executor.call(HookCall(delivery.hook, self._timeout_seconds, delivery.arguments))
            delivery.done.set()
