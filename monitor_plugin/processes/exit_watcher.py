"""Notices at once when a process ends: by pidfd and epoll, or by polling where there is none."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from .process import Process

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class ExitWatcher:
    """One thread that watches any number of processes.

    Args:
        on_end: called on the watcher's thread with a watched process that has ended, once; it
            must be quick.
    """

    def __init__(self, on_end: Callable[[Process], None]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._by_pidfd: dict[int, Process] = {}
        self._polled: set[Process] = set()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._wakeup: tuple[int, int] | None = None
        self._epoll: select.epoll | None = None

    def start(self) -> None:
        """Start watching, also those that were added before."""
        with self._lock:
            self._wakeup = os.pipe()
            if hasattr(select, "epoll"):
                self._epoll = select.epoll()
                self._epoll.register(self._wakeup[0], select.EPOLLIN)
                for pidfd in self._by_pidfd:
                    self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        self._thread = threading.Thread(target=self._run, name="monitor-watcher", daemon=True)
        self._thread.start()

    def watch(self, process: Process) -> None:
        """Watch a process. No other thread may close it meanwhile."""
        pidfd = process.pidfd if hasattr(select, "epoll") else None
        with self._lock:
            if pidfd is None:
                self._polled.add(process)
            else:
                self._by_pidfd[pidfd] = process
                if self._epoll:
                    self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        if pidfd is None:
            self._wake()

    def forget(self, process: Process) -> None:
        """Stop watching a process; to be called before it is closed."""
        pidfd = -1 if process.pidfd is None else process.pidfd
        with self._lock:
            self._polled.discard(process)
            if pidfd in self._by_pidfd:
                del self._by_pidfd[pidfd]
                if self._epoll:
                    self._epoll.unregister(pidfd)

    def descriptors(self) -> int:
        """Count the pidfds that are watched."""
        with self._lock:
            return len(self._by_pidfd)

    def close(self) -> None:
        """End the thread and close what it waited on."""
        self._closing = True
        self._wake()
        if self._thread:
            self._thread.join()
        with self._lock:
            if self._epoll:
                self._epoll.close()
                self._epoll = None
            for descriptor in self._wakeup or ():
                os.close(descriptor)
            self._wakeup = None

    def _wake(self) -> None:
        with self._lock:
            if self._wakeup:
                os.write(self._wakeup[1], b"\0")

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                timeout = _POLL_SECONDS if self._polled else None
            for process in self._ready(timeout) + self._ended_polled():
                try:
                    self._on_end(process)
                except Exception:  # what goes wrong with one must not blind it to the others
                    _logger.exception("the end of process %d could not be noted", process.pid)

    def _ready(self, timeout: float | None) -> list[Process]:
        """Wait for a pidfd, a wake-up or the timeout; list the processes that it ended."""
        assert self._wakeup  # set before the thread starts
        wakeup = self._wakeup[0]
        if self._epoll:
            ready = [descriptor for descriptor, _ in self._epoll.poll(timeout)]
        else:
            ready = select.select([wakeup], [], [], timeout)[0]
        if wakeup in ready:
            os.read(wakeup, 4096)
        with self._lock:
            found = [self._by_pidfd[each] for each in ready if each in self._by_pidfd]
        # A number may have been closed and given to another process's pidfd since it was ready.
        return [process for process in found if process.ended()]

    def _ended_polled(self) -> list[Process]:
        with self._lock:
            polled = list(self._polled)
        ended = [process for process in polled if process.ended()]
        with self._lock:
            self._polled.difference_update(ended)
        return ended
