"""Calls the hooks that report events: each plugin on a thread of its own, in order."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

from ..domain.models import EventFigures
from .executor import HookCall, HookExecutor, HookNotCalled, Implementation
from .plugin_queue import (
    GONE,
    LEFT_BEHIND,
    MAX_EVENTS,
    POSTMORTEM,
    STATE_CHANGED,
    Delivery,
    PluginQueue,
    QueuedEvent,
)

_logger = logging.getLogger(__name__)

EVENT_HOOKS = (
    "monitor_backend_registered",
    STATE_CHANGED,
    GONE,
    LEFT_BEHIND,
    POSTMORTEM,
    "monitor_shutdown_finished",
    "monitor_watchdog_acted",
)

_CLOSE_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_IDLE_SECONDS = 60.0  # a plugin's thread ends after this time without an event


class EventQueue:
    """The events that wait for each plugin, and the threads that deliver them. Thread-safe.

    A plugin that is slow, or does not return, delays neither the other plugins nor the log.

    Args:
        executor: calls the implementations.
        timeout_seconds: the time limit of each implementation, and of `wait`.
        log: is called with the hook, or the name, and the arguments of each event, on a thread of
            its own.
    """

    def __init__(
        self,
        executor: HookExecutor,
        timeout_seconds: float,
        log: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._executor = executor
        self._timeout_seconds = timeout_seconds
        self._log = log
        self._log_lines: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._log_thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._subscribers: dict[int, _Subscriber] = {}  # by the `id` of the plugin
        self._closing = threading.Event()
        self._ends_at = math.inf

    def start(self) -> None:
        """Start the threads, which first deliver the events that are already queued.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._closing.clear()
        self._ends_at = math.inf
        self._log_thread = threading.Thread(
            target=self._write_log, name="monitor-events", daemon=True
        )
        try:
            self._log_thread.start()
        except RuntimeError:
            self._log_thread = None  # only a started thread can be joined
            raise
        with self._lock:
            for subscriber in self._subscribers.values():
                self._ensure_thread(subscriber)

    def publish(self, hook: str, **arguments: Any) -> Delivery:
        """Queue an event without blocking."""
        by_plugin: dict[int, list[Implementation]] = {}
        for each in self._executor.implementations(hook):
            by_plugin.setdefault(id(each.record.plugin), []).append(each)
        delivery = Delivery()
        with self._lock:
            self._add_log_line(partial(self._log, hook, arguments))
            for same_plugin in by_plugin.values():
                self._put(hook, arguments, same_plugin, delivery)
            delivery.count_down()  # for this method
        return delivery

    def log(self, event: str, **arguments: Any) -> None:
        """Queue the log line of an event that no hook reports, without blocking."""
        with self._lock:
            self._add_log_line(partial(self._log, event, arguments))

    def wait(self, deliveries: Iterable[Delivery]) -> None:
        """Wait for deliveries, up to `timeout_seconds` in all. Does not wait on a hook's thread."""
        if self._log_thread is None or self._executor.on_hook_thread():
            return
        deadline = time.monotonic() + self._timeout_seconds
        for each in deliveries:
            each.done.wait(max(0.0, deadline - time.monotonic()))

    def figures(self, plugin: object) -> EventFigures:
        """Return how far a plugin is behind."""
        with self._lock:
            subscriber = self._subscribers.get(id(plugin))
            return subscriber.queue.figures(time.monotonic()) if subscriber else EventFigures()

    def close(self) -> None:
        """Deliver the queued events, for at most 5 s, and end the threads. May be started again.

        The log says how many events were not delivered, unless `close` is called by a hook.
        """
        with self._lock:
            log_thread, self._log_thread = self._log_thread, None
            if log_thread is None:
                return
            self._ends_at = time.monotonic() + _CLOSE_SECONDS
            self._closing.set()
            threads = [each.thread for each in self._subscribers.values() if each.thread]
            for subscriber in self._subscribers.values():
                subscriber.changed.notify()
        self._log_lines.put(None)
        if self._executor.on_hook_thread():
            return
        for thread in (*threads, log_thread):
            thread.join(max(0.0, self._ends_at - time.monotonic()))
        with self._lock:
            subscribers = list(self._subscribers.values())
        for each in subscribers:
            if waiting := self.figures(each.plugin).waiting:
                message = "plugin %r: events not delivered before the monitor was closed: %d"
                _logger.error(message, each.plugin_name, waiting)

    # Methods for callers that hold the lock.

    def _put(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        implementations: list[Implementation],
        delivery: Delivery,
    ) -> None:
        plugin, plugin_name = implementations[0].record.plugin, implementations[0].plugin_name
        subscriber = self._subscribers.get(id(plugin))
        if subscriber is None:
            subscriber = _Subscriber(plugin, plugin_name, threading.Condition(self._lock))
            self._subscribers[id(plugin)] = subscriber
        event = QueuedEvent(hook, arguments, implementations, time.monotonic(), delivery)
        if event.is_late() or subscriber.queue.is_blocked():
            event = event._replace(delivery=None)  # the hook may hang: do not wait for it
        else:
            delivery.expected += 1
        dropped = subscriber.queue.put(event)
        for each in dropped:
            if each.delivery:
                each.delivery.count_down()
        if dropped and not subscriber.has_dropped:
            subscriber.has_dropped = True
            message = (
                "plugin %r: %d events wait for its hooks; an event is dropped (further ones are "
                "only counted, in GET /hooks)"
            )
            self._add_log_line(partial(_logger.error, message, subscriber.plugin_name, MAX_EVENTS))
        subscriber.changed.notify()
        if self._log_thread:
            self._ensure_thread(subscriber)

    def _add_log_line(self, write: Callable[[], object]) -> None:
        if self._log_lines.qsize() < MAX_EVENTS:  # more lines wait only if a log handler blocks
            self._log_lines.put(write)

    def _ensure_thread(self, subscriber: _Subscriber) -> None:
        if subscriber.thread or not subscriber.queue:
            return
        name = f"monitor-events-{subscriber.plugin_name}"
        thread = threading.Thread(target=self._run, args=(subscriber,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            message = "plugin %r: its events wait, because no thread can be started: %s"
            self._add_log_line(partial(_logger.error, message, subscriber.plugin_name, error))
        else:
            subscriber.thread = thread

    # Methods that run on the threads.

    def _write_log(self) -> None:
        while write := self._log_lines.get():
            with contextlib.suppress(Exception):  # a handler that raises must not end the thread
                write()

    def _run(self, subscriber: _Subscriber) -> None:
        while event := self._next(subscriber):
            try:
                self._deliver(subscriber, event)
            except Exception:  # the plugin must get its next events
                message = "plugin %r: hook %s could not be called"
                _logger.exception(message, subscriber.plugin_name, event.hook)

    def _next(self, subscriber: _Subscriber) -> QueuedEvent | None:
        """Wait for the next event of a plugin; None ends the thread."""
        with self._lock:
            while True:
                closing = self._closing.is_set()
                is_over = closing and (subscriber.is_failing or time.monotonic() > self._ends_at)
                event = None if is_over else subscriber.queue.take()
                if event:
                    return event
                if closing or not (subscriber.changed.wait(_IDLE_SECONDS) or subscriber.queue):
                    subscriber.thread = None
                    self._forget_if_unregistered(subscriber)
                    return None

    def _deliver(self, subscriber: _Subscriber, event: QueuedEvent) -> None:
        registered = self._executor.implementations(event.hook)  # a plugin may have left meanwhile
        implementations = [each for each in event.implementations if each in registered]
        wake = partial(self._wake, subscriber)
        call = HookCall(event.hook, self._timeout_seconds, event.arguments, on_late_return=wake)
        outcomes = self._executor.call_some(implementations, call)
        subscriber.is_failing = any(isinstance(each.error, HookNotCalled) for each in outcomes)
        if subscriber.is_failing:
            self._closing.wait(_RETRY_SECONDS)
            with self._lock:
                subscriber.queue.put_back(event)
        elif event.delivery:
            with self._lock:
                event.delivery.count_down()

    def _wake(self, subscriber: _Subscriber) -> None:
        with self._lock:
            subscriber.changed.notify()

    def _forget_if_unregistered(self, subscriber: _Subscriber) -> None:
        implementations = chain.from_iterable(map(self._executor.implementations, EVENT_HOOKS))
        if all(each.record.plugin is not subscriber.plugin for each in implementations):
            del self._subscribers[id(subscriber.plugin)]


class _Subscriber:
    """A plugin that implements hooks which report events.

    Attributes:
        plugin: the plugin. The reference ensures that no other object gets the same `id`.
        changed: is notified when an event was queued, or a late call has returned.
        has_dropped: whether an event was dropped, which is logged once.
        is_failing: whether the hook of the last event could not be called.
    """

    def __init__(self, plugin: object, plugin_name: str, changed: threading.Condition) -> None:
        self.plugin = plugin
        self.plugin_name = plugin_name
        self.changed = changed
        self.queue = PluginQueue()
        self.thread: threading.Thread | None = None
        self.has_dropped = self.is_failing = False
