"""Reads the memory of process trees in the background, one at a time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..backends.registry import Record, Registry
from ..concurrency.cpu_budget import CpuBudget
from ..processes.process_table import ProcessIdentity
from ..processes.tree_memory import TreeMemory, read_tree_memory

_logger = logging.getLogger(__name__)

# A reading takes 17 ms per GiB, and seconds with hundreds of GiB. After a reading of 1.7 s, the
# thread pauses for 85 s.
_SHARE_OF_A_CORE = 0.02
_MAX_CREDIT_SECONDS = 0.1
# A tree is read again after this time: sooner if its RSS has changed by more than an eighth, and
# later if its total is the backend's own report.
_INTERVAL_SECONDS = 10.0
_CHANGED_INTERVAL_SECONDS = 1.0
_REPORTED_INTERVAL_SECONDS = 30.0
# The age of a tree that has changed is multiplied by this. While there is too little CPU time for
# all trees, the tree with the greatest age is read first.
_CHANGED_WEIGHT = 10
_CLOSE_SECONDS = 1.0


class MemoryReader:
    """Replaces `Record.tree_memory` of each backend by newer readings, on one thread.

    The thread uses at most 2 % of a core on average, so trees that take long are read less often.
    The kernel may block a reading while a member changes its memory map, for example while the
    member maps a file of a file system that does not answer. Meanwhile no other tree is read, and
    the ages of all figures grow. No other thread waits for this one.

    Args:
        registry: the registered backends.
        read: reads a tree: see `read_tree_memory`.
        clock: tells the time in seconds.
        budget: the CPU time of the thread; None: 2 % of a core.
    """

    def __init__(
        self,
        registry: Registry,
        read: Callable[
            [Iterable[ProcessIdentity], ProcessIdentity], TreeMemory | None
        ] = read_tree_memory,
        clock: Callable[[], float] = time.monotonic,
        budget: CpuBudget | None = None,
    ) -> None:
        self._registry = registry
        self._read = read
        self._clock = clock
        self._budget = budget or CpuBudget(_SHARE_OF_A_CORE, _MAX_CREDIT_SECONDS)
        self._queue: deque[Record] = deque()
        self._queued_at = -math.inf
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        # Each thread has its own event, so that a thread that was blocked during `close` ends
        # afterwards.
        closing = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(closing,), name="monitor-memory", daemon=True
        )
        thread.start()
        self._closing, self._thread = closing, thread

    def close(self) -> None:
        """End the thread after the reading in progress; wait at most 1 s for its end."""
        self._closing.set()
        self._woken.set()
        if self._thread:
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    def wake(self) -> None:
        """Wake the thread, so that a new backend is read soon. Does not block."""
        self._woken.set()

    def _run(self, closing: threading.Event) -> None:
        while not closing.is_set():
            try:
                seconds = self.read_next()
            except Exception:
                _logger.exception("the memory of a process tree could not be read")
                seconds = _CHANGED_INTERVAL_SECONDS
            self._woken.wait(seconds)
            self._woken.clear()

    def read_next(self) -> float:
        """Read the tree that is due first, if the CPU time allows it.

        Returns:
            The time until the next call, in seconds.
        """
        if (seconds := self._budget.wait_seconds()) > 0:
            return seconds
        with self._budget.spend():
            now = self._clock()
            if not self._queue or now - self._queued_at >= _CHANGED_INTERVAL_SECONDS:
                self._queue, self._queued_at = deque(self._find_due(now)), now
            if self._queue:
                self._read_tree(self._queue.popleft(), now)
        seconds = self._budget.wait_seconds() if self._queue else _CHANGED_INTERVAL_SECONDS
        if seconds >= _CHANGED_INTERVAL_SECONDS:
            # The order will be out of date. Without the queue, ended backends are freed meanwhile.
            self._queue.clear()
        return seconds

    def _find_due(self, now: float) -> list[Record]:
        """List the backends whose trees are due: new backends first, then the oldest readings.

        Uses the RSS of the last snapshot, so that no file is read here.
        """
        priorities: dict[Record, float] = {}
        for record in self._registry.records():
            age = now - record.tree_read_at
            if age < _CHANGED_INTERVAL_SECONDS:
                continue
            if math.isfinite(age) and _has_changed(record):
                priorities[record] = _CHANGED_WEIGHT * age
            elif age >= _interval_seconds(record):
                priorities[record] = age
        return sorted(priorities, key=lambda each: -priorities[each])

    def _read_tree(self, record: Record, now: float) -> None:
        record.tree_read_at = now
        members = record.members
        with suppress(OSError):  # no file descriptor is free: the last reading stays
            if memory := self._read(members.identities(), members.root):
                record.tree_memory = memory.with_earlier_peak(record.tree_memory)


def _interval_seconds(record: Record) -> float:
    """Return the time until a tree whose RSS does not change is read again."""
    is_reported = record.observation and record.observation.memory_source == "backend"
    return _REPORTED_INTERVAL_SECONDS if is_reported else _INTERVAL_SECONDS


def _has_changed(record: Record) -> bool:
    """Whether the RSS of a tree has changed by more than an eighth since the tree was read."""
    memory, rss = record.tree_memory, record.members.rss()
    if memory is None or rss is None:
        return False
    amount, read_at = rss
    return read_at > memory.taken_at and memory.is_outdated_by(amount)
