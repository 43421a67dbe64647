"""Reports the exits of processes: immediately through pidfds, or by polling without a pidfd."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from .process import Process

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_RETRY_SECONDS = 1.0


class ExitWatcher:
    """Watches any number of processes in one thread.

    Args:
        on_exit: called once for each watched process that has ended, on the watcher's thread; it
            must return quickly. If it raises, it is called again, until it succeeds or the process
            is no longer watched.
    """

    def __init__(self, on_exit: Callable[[Process], None]) -> None:
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._by_pidfd: dict[int, Process] = {}
        self._polled: set[Process] = set()
        self._failing: set[Process] = set()  # processes whose last check failed, which was logged
        self._closing = False
        self._thread: threading.Thread | None = None
        self._wakeup: tuple[int, int] | None = None  # a pipe
        self._epoll: select.epoll | None = None

    def start(self) -> None:
        """Start the thread. It also watches the processes that were added before.

        Raises:
            OSError, RuntimeError: the system has no descriptor or no thread left. `close` closes
                the descriptors that were opened, and `start` may be called again after it.
        """
        self._closing = False
        with self._lock:
            self._wakeup = os.pipe()
            self._epoll = select.epoll()
            self._epoll.register(self._wakeup[0], select.EPOLLIN)
            for process in self._by_pidfd.values():
                self._register(process)
            arguments = (self._epoll, self._wakeup[0])
        self._thread = threading.Thread(
            target=self._run, args=arguments, name="monitor-watcher", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # only a started thread can be joined
            raise

    def watch(self, process: Process) -> None:
        """Watch a process. No other thread may close the process during this call."""
        pidfd = process.pidfd
        with self._lock:
            if pidfd is None:
                self._polled.add(process)
                self._wake()  # the thread may be waiting without a timeout
            else:
                self._by_pidfd[pidfd] = process
                self._register(process)

    def unwatch(self, process: Process) -> None:
        """Stop watching a process. Call this before the process is closed."""
        pidfd = process.pidfd
        with self._lock:
            self._polled.discard(process)
            self._failing.discard(process)
            if pidfd is not None and pidfd in self._by_pidfd:
                del self._by_pidfd[pidfd]
                if self._epoll:
                    with contextlib.suppress(OSError):  # it could not be registered
                        self._epoll.unregister(pidfd)

    def pidfd_count(self) -> int:
        """Count the watched processes that have a pidfd."""
        with self._lock:
            return len(self._by_pidfd)

    def close(self) -> None:
        """End the thread and close the epoll object and the pipe."""
        self._closing = True
        with self._lock:
            self._wake()
        if self._thread:
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._epoll:
                self._epoll.close()
                self._epoll = None
            for descriptor in self._wakeup or ():
                os.close(descriptor)
            self._wakeup = None

    def _register(self, process: Process) -> None:
        """Let epoll report the end of a process; poll the process if the kernel refuses that.

        For example, a user may have only as many registrations as fs.epoll.max_user_watches says.
        """
        if self._epoll and process.pidfd is not None:
            try:
                self._epoll.register(process.pidfd, select.EPOLLIN | select.EPOLLONESHOT)
            except OSError:
                self._polled.add(process)
                self._wake()

    def _wake(self) -> None:
        if self._wakeup:
            os.write(self._wakeup[1], b"\0")

    def _run(self, epoll: select.epoll, wakeup: int) -> None:
        while not self._closing:
            try:
                for process in self._wait(epoll, wakeup):
                    self._check(process)
            except Exception:  # the thread must go on watching
                _logger.exception("the wait for exits failed; waiting again")
                time.sleep(_RETRY_SECONDS)

    def _wait(self, epoll: select.epoll, wakeup: int) -> list[Process]:
        """Wait, and list the processes to check: those with a ready pidfd, and the polled ones."""
        with self._lock:
            timeout = _POLL_SECONDS if self._polled else None
        ready = [descriptor for descriptor, _ in epoll.poll(timeout)]
        if wakeup in ready:
            os.read(wakeup, 4096)
        with self._lock:
            processes = [self._by_pidfd[each] for each in ready if each in self._by_pidfd]
            return [*processes, *self._polled]

    def _check(self, process: Process) -> None:
        """Report a process if it has ended. After an error, the process is checked again later."""
        try:
            # A ready pidfd may have been closed since, and its number reused for another process.
            has_ended = process.ended()
            if has_ended:
                self._on_exit(process)
        except Exception:  # the other processes must be checked
            with self._lock:
                if process in self._by_pidfd.values():
                    self._polled.add(process)  # its pidfd reports the exit only once
                is_logged = process in self._failing
                if process in self._polled:  # otherwise it is no longer watched
                    self._failing.add(process)
            if not is_logged:
                _logger.exception("the exit of process %d could not be handled", process.pid)
        else:
            with self._lock:
                self._failing.discard(process)
                if has_ended:
                    self._polled.discard(process)
