"""Reads the GPUs on separate threads, because a call of a driver may never return."""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from ..domain.gpus import Gpu
from ..processes.process import process_user
from ..processes.process_table import TICKS_PER_SECOND, read_row
from .provider import GpuProvider
from .reading import STALE_SECONDS, DeviceReading, GpuProcess, GpuReading

_logger = logging.getLogger(__name__)

# The pause between two reads in the background. A request ends the pause. The pause is longer if
# the reads would use more than 2 % of a core.
_INTERVAL_SECONDS = 5.0
_PAUSE_PER_CPU_SECOND = 49
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# The time until a provider that has listed no device is read again.
_EMPTY_SECONDS = 60.0
# Maximum wait for a driver when the monitor closes. A thread that hangs goes on as a daemon thread.
_CLOSE_SECONDS = 1.0

# The devices by plugin. None: the plugin's hook failed, and its devices are not known.
DeviceLists = Mapping[str, Sequence[Gpu] | None]


class GpuReader:
    """Reads the GPUs of all providers and hooks. Safe to call from any thread.

    Each provider has its own thread, and all hooks share one, so that a driver that hangs or fails
    does not hide the devices of another driver. While a driver hangs, callers get its last reading,
    and no second read is begun. Without providers and hooks there is no thread.

    Args:
        providers: read the devices of the machine.
        list_by_hooks: calls the hooks `monitor_list_gpus`, and returns their devices by plugin.
        has_hooks: whether a plugin implements that hook.
    """

    def __init__(
        self,
        providers: Sequence[GpuProvider] = (),
        list_by_hooks: Callable[[], DeviceLists] = dict,
        has_hooks: Callable[[], bool] = lambda: False,
    ) -> None:
        self._lock = threading.Lock()
        self._has_hooks = has_hooks
        self._hooks = _Source("hook monitor_list_gpus", list_by_hooks, None, self._merge)
        self._providers = [
            _Source(type(each).__name__, _lists_of(each), each.close, self._merge)
            for each in providers
        ]
        self._started = False
        self._duplicates: set[str] = set()
        self._reading = GpuReading()

    def start(self) -> None:
        """Begin to read in the background. May be called again after `close`.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._started = True
        self._hooks.resume()  # a plugin with the hook may be registered later
        for each in self._sources():
            each.start()

    def close(self) -> None:
        """End the threads, and release the drivers; waits at most 1 s for a driver that hangs."""
        self._started = False
        sources = [self._hooks, *self._providers]
        for each in sources:
            each.stop()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for each in sources:
            each.join(deadline)

    def last(self) -> GpuReading:
        """Return the last reading without waiting."""
        return self._reading if self._sources() else GpuReading(taken_at=time.monotonic())

    def read(self, max_age_seconds: float = 1.0, wait_seconds: float = 1.0) -> GpuReading:
        """Return a reading of at most some age; the last reading where a driver does not answer.

        Args:
            max_age_seconds: maximum age of the reading. An older reading is replaced.
            wait_seconds: maximum wait for a driver. It includes the time that the driver has
                already taken for a read in progress.
        """
        now = time.monotonic()
        oldest, deadline = now - max_age_seconds, now + wait_seconds
        for each in self._request(oldest):
            each.wait(oldest, wait_seconds, deadline)
        return self.last()

    def request(self, max_age_seconds: float = 1.0) -> None:
        """Request the reads that `read` with this age would wait for. Does not wait."""
        self._request(time.monotonic() - max_age_seconds)

    def _request(self, oldest: float) -> list[_Source]:
        """Request reads from the sources whose last read began before `oldest`.

        Returns:
            The sources whose reads are now in progress or requested.
        """
        if not self._started:
            return []
        late = [each for each in self._sources() if not each.has_read_since(oldest)]
        return [each for each in late if each.request(oldest)]

    def _sources(self) -> list[_Source]:
        """List the sources. A device that several sources list is taken from the first of them."""
        return [*([self._hooks] if self._has_hooks() else []), *self._providers]

    def _merge(self) -> None:
        """Make one reading from the last lists of all sources."""
        sources = self._sources()
        with self._lock:
            gpus: dict[str, Gpu] = {}
            devices: dict[str, DeviceReading] = {}
            duplicates = set()
            for listed in chain.from_iterable(source.lists.values() for source in sources):
                for gpu in listed.gpus:
                    if gpu.component in gpus:
                        duplicates.add(gpu.component)
                    else:
                        gpus[gpu.component] = gpu
                        devices[gpu.component] = listed.device
            times = [source.taken_at for source in sources if not source.is_empty]
            taken_at = min(times, default=time.monotonic())
            self._reading = GpuReading(tuple(gpus.values()), taken_at, devices)
            unlogged = duplicates - self._duplicates
            self._duplicates |= duplicates
        for component in sorted(unlogged):
            _logger.warning(
                "GPU %r is listed more than once; the first hook's device counts, or else the "
                "first provider's",
                component,
            )


class _List(NamedTuple):
    """The devices that a plugin or a provider has listed, and their common reading."""

    gpus: Sequence[Gpu]
    device: DeviceReading


class _Source:
    """Reads one provider, or all hooks, on a separate thread.

    The thread of a provider that lists no device ends. The first request after a minute starts it
    again, because the driver may have been loaded.

    Args:
        name: for the log.
        read: lists the devices; may hang.
        close: releases the driver; may hang. None for hooks.
        on_change: called on the thread after each read.

    Attributes:
        lists: the last list of each plugin; a provider has one list, with the name "".
        taken_at: when the oldest list was read (monotonic seconds); minus infinity before the
            first one.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], DeviceLists],
        close: Callable[[], None] | None,
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._read = read
        self._close = close
        self._on_change = on_change
        self._driver = threading.Lock()  # the driver is called by one thread at a time
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # the last one
        self._runs = False
        self._stopping = False
        self._requested = False
        self._began_at: float | None = None  # of the read in progress
        self._read_at = -math.inf  # the beginning of the last read that has ended
        self._empty_until = -math.inf
        self._failed = False
        self._has_logged_silence = False
        self.lists: dict[str, _List] = {}
        self.taken_at = -math.inf

    @property
    def is_empty(self) -> bool:
        """Whether the last read has found no device."""
        return self.taken_at > -math.inf and not any(each.gpus for each in self.lists.values())

    def resume(self) -> None:
        """Allow requests again after `stop`."""
        with self._changed:
            self._stopping = False

    def start(self) -> None:
        """Start the thread, unless it runs. The thread reads immediately.

        Raises:
            RuntimeError: no thread can be started.
        """
        self.resume()
        with self._changed:
            self._start_thread()

    def _start_thread(self) -> None:
        if self._runs:  # it may hang
            return
        self._requested = self._runs = True
        thread = threading.Thread(target=self._run, name="monitor-gpus", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._runs = False
            raise
        self._thread = thread

    def stop(self) -> None:
        """Let the thread end after the read in progress."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the end of the thread, at most until `deadline` (monotonic seconds)."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def has_read_since(self, oldest: float) -> bool:
        """Whether no read is needed: one that began at `oldest` or later has ended.

        After a read that found no device, none is needed for a minute.
        """
        return self._read_at >= oldest or time.monotonic() < self._empty_until

    def request(self, oldest: float) -> bool:
        """Request a read, unless one that began at `oldest` or later is in progress.

        Returns:
            False if there is nothing to wait for: such a read has ended meanwhile, the reader was
            closed, or no thread can be started.
        """
        try:
            with self._changed:
                if self._stopping or self.has_read_since(oldest):
                    return False
                if self._began_at is None or self._began_at < oldest:
                    self._requested = True
                    self._changed.notify_all()
                self._start_thread()
                seconds = 0.0 if self._began_at is None else time.monotonic() - self._began_at
                is_silent = seconds > STALE_SECONDS and not self._has_logged_silence
                self._has_logged_silence |= is_silent
        except RuntimeError as error:
            _logger.error("%s: the GPUs cannot be read: %s", self._name, error)
            return False
        if is_silent:
            message = "%s: the driver has not answered for %.0f s (logged once until it answers)"
            _logger.warning(message, self._name, seconds)
        return True

    def wait(self, oldest: float, seconds: float, deadline: float) -> None:
        """Wait for the end of a read that began at `oldest` or later.

        Args:
            oldest: monotonic seconds.
            seconds: maximum time of a read, counted from its beginning if it is in progress.
            deadline: when the wait ends at the latest (monotonic seconds).
        """
        with self._changed:
            if self._began_at is not None:
                deadline = min(deadline, self._began_at + seconds)
            self._changed.wait_for(
                lambda: self._stopping or self.has_read_since(oldest),
                max(0.0, deadline - time.monotonic()),
            )

    # Methods that run on the thread.

    def _run(self) -> None:
        pause = 0.0
        while (began_at := self._begin(pause)) is not None:
            cpu_seconds = -time.thread_time()
            with self._driver:
                self._read_once(began_at)
            cpu_seconds += time.thread_time()
            pause = max(_INTERVAL_SECONDS, _PAUSE_PER_CPU_SECOND * cpu_seconds)
            if not self._end(began_at):
                break
        if self._close is not None:
            try:
                with self._driver:
                    self._close()
            except Exception:
                _logger.exception("%s: the driver could not be released", self._name)

    def _begin(self, pause: float) -> float | None:
        """Wait for a request or for the end of the pause, and begin a read.

        Returns:
            When the read begins (monotonic seconds); None if the thread must end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._requested, pause)
            if self._stopping:
                self._runs = False
                return None
            self._requested = False
            self._began_at = time.monotonic()
            return self._began_at

    def _end(self, began_at: float) -> bool:
        """Wake the waiting threads; return False if this thread must end."""
        with self._changed:
            self._began_at, self._read_at = None, began_at
            self._has_logged_silence = False
            self._changed.notify_all()
            if self._close is None or not self.is_empty:
                return True
            self._runs = False
            self._empty_until = time.monotonic() + _EMPTY_SECONDS
            return False

    def _read_once(self, began_at: float) -> None:
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            found = self._read()
            lists = {
                name: _List(gpus, DeviceReading(began_at, _find_processes(gpus, since_boot)))
                for name, gpus in found.items()
                if gpus is not None
            }
        except Exception as error:  # a provider calls third-party code
            # A lack of file descriptors is no failure of the driver, and is not logged here.
            has_descriptor = getattr(error, "errno", None) not in _NO_DESCRIPTOR
            if not self._failed and has_descriptor:
                message = "%s: the GPUs cannot be read; logged once until they can be read again"
                _logger.exception(message, self._name)
            self._failed = has_descriptor
            return
        self._failed = False
        kept = {name: each for name, each in self.lists.items() if name in found}
        self.lists = {**kept, **lists}
        times = [each.device.taken_at for each in self.lists.values()]
        self.taken_at = min(times, default=began_at)
        self._on_change()


def _lists_of(provider: GpuProvider) -> Callable[[], DeviceLists]:
    return lambda: {"": provider.read()}


def _find_processes(gpus: Sequence[Gpu], since_boot: float) -> dict[int, GpuProcess]:
    """Find the processes whose PIDs devices list.

    Args:
        gpus: the devices.
        since_boot: when the read began, in seconds since boot. A process that started later has
            reused the PID of the listed process.
    """
    found: dict[int, GpuProcess] = {}
    users: dict[int, str] = {}
    for pid in {use.pid for gpu in gpus for use in gpu.uses or ()}:
        row = read_row(pid)
        if row is not None and row.started <= since_boot * TICKS_PER_SECOND:
            found[pid] = GpuProcess(row.started, row.name, process_user(pid, users))
    return found
