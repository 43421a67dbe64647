"""Gathers all that is known of each end of a backend, and reports it once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ..domain.exits import complete_by_host
from ..domain.models import LeftBehindProcess
from ..domain.postmortems import PostMortem
from ..domain.units import HostExit
from ..plugins.hooks import Hooks
from .log_reader import LogReader
from .registry import EndedBackend, Record, Registry

_logger = logging.getLogger(__name__)

# How long a host may take to report an exit code that the monitor does not know. Hosts that poll do
# so every second or two.
_EXIT_CODE_SECONDS = 3.0
# How long a host gets to learn of the end by itself, before it is asked what it knows of the end.
_HOST_SECONDS = 1.0
# No hook is called for a post-mortem that waited longer: otherwise a slow hook would delay the
# post-mortems of thousands of exits by hours.
_HOOK_SECONDS = 10.0
_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 1.0


class _Entry(NamedTuple):
    """An exit of which the post-mortem is due.

    Attributes:
        record: the backend's record, which is no longer registered.
        ended: its exit, as it was recorded.
        left_behind: the members that still run.
        added_at: when the members had been searched for (monotonic seconds).
        host_is_asked: whether hosts were asked for what they know of the end, or cannot be.
    """

    record: Record
    ended: EndedBackend
    left_behind: tuple[LeftBehindProcess, ...]
    added_at: float
    host_is_asked: bool


class PostMortemMaker:
    """Makes the post-mortem of each exit on a thread of its own. Safe to call from any thread.

    Args:
        registry: stores the post-mortems with the exits.
        hooks: report the post-mortems.
        log_reader: reads the last output.
    """

    def __init__(self, registry: Registry, hooks: Hooks, log_reader: LogReader) -> None:
        self._registry = registry
        self._hooks = hooks
        self._log_reader = log_reader
        self._changed = threading.Condition()  # guards the attributes below
        self._entries: deque[_Entry] = deque()  # oldest first
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._closing = False
        thread = threading.Thread(target=self._run, name="monitor-postmortems", daemon=True)
        thread.start()
        self._thread = thread  # only a started thread can be joined

    def close(self) -> None:
        """Begin no further post-mortem, and end the thread; it may be started again.

        Waits at most 1 s for a hook that has not returned; the thread then ends after that hook.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    def add(
        self, record: Record, ended: EndedBackend, left_behind: Sequence[LeftBehindProcess]
    ) -> None:
        """Make the post-mortem of an exit, whose members were searched for. Does not block."""
        with self._changed:
            self._entries.append(
                _Entry(
                    *(record, ended, tuple(left_behind), time.monotonic()),
                    host_is_asked=not self._hooks.may_explain_exit(),
                )
            )
            self._changed.notify_all()

    def _run(self) -> None:
        while self._make_next():  # no variable here keeps a record while the thread waits
            pass

    def _make_next(self) -> bool:
        """Wait for the next exit, and ask its host or make its post-mortem; False: it closes."""
        entry = self._next()
        if entry is None:
            return False
        try:
            if entry.host_is_asked:
                self._make(entry)
            else:
                self._ask_host(entry)
        except Exception:  # later post-mortems must still be made
            _logger.exception("the post-mortem of %s could not be made", entry.ended.backend)
        return True

    def _next(self) -> _Entry | None:
        """Wait for an exit of which the next step is due, and remove it; None: the maker closes."""
        with self._changed:
            while not self._closing:
                for entry in self._entries:
                    if self._is_due(entry):
                        self._entries.remove(entry)
                        return entry
                self._changed.wait(_POLL_SECONDS if self._entries else None)
            return None

    def _is_due(self, entry: _Entry) -> bool:
        """Whether to ask the host, or else whether the exit code is known, or not expected."""
        age = time.monotonic() - entry.added_at
        if not entry.host_is_asked:
            return age >= _HOST_SECONDS
        if age >= _EXIT_CODE_SECONDS:
            return True
        exit = self._registry.latest(entry.ended).exit
        return exit.exit_code is not None or exit.signal is not None

    def _ask_host(self, entry: _Entry) -> None:
        """Complete an exit by what its host says, and put it back for its post-mortem."""
        host_exit = None
        if time.monotonic() - entry.added_at < _HOOK_SECONDS:
            host_exit = self._hooks.explain_exit(entry.ended.backend)
        ended = entry.ended
        if host_exit is not None:
            explain = partial(_explained, host_exit=host_exit)
            self._registry.complete_exit(ended.backend, explain)
            ended = explain(ended)  # in case the exit is not stored any more
        with self._changed:
            self._entries.appendleft(entry._replace(ended=ended, host_is_asked=True))

    def _make(self, entry: _Entry) -> None:
        record, ended = entry.record, self._registry.latest(entry.ended)
        backend, last_output = ended.backend, None
        if time.monotonic() - entry.added_at < _HOOK_SECONDS:
            last_output = self._log_reader.last_output_of_ended(
                backend.model, backend.pid, ended.output
            )
        ended = self._registry.latest(entry.ended)  # the host may have reported the exit code
        postmortem = PostMortem(
            id=ended.id,
            exit=ended.exit,
            uptime_seconds=ended.uptime_seconds,
            ready_seconds=record.ready_seconds,
            ends_last_hour=ended.ends_last_hour,
            left_behind=entry.left_behind,
            last_observation=record.observation,
            last_output=last_output,
            host_exit=ended.host_exit,
        )
        self._registry.set_postmortem(backend, postmortem)
        self._hooks.backend_postmortem(backend, postmortem)


def _explained(ended: EndedBackend, host_exit: HostExit) -> EndedBackend:
    """Add what the host says of an exit, and complete the exit by it."""
    exit = complete_by_host(ended.exit, host_exit)
    return ended._replace(exit=exit, host_exit=host_exit)
