"""A backend's whole process tree, held so that no member escapes or is mistaken; and its stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from .process import Process, ProcessGone
from .process_table import ProcessRow, descendants, read_row, read_table

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.02
_REFRESH_SECONDS = 0.1
_MOST_LOOKS = 20  # at what goes on forking, however often one looks


class ProcessTree:
    """A process, its descendants, and the session that it leads, as far as they were seen.

    Members stay members when their parent ends. Not for use by several threads at once.

    Args:
        root: whose tree it is; it stays the caller's to close.
    """

    def __init__(self, root: Process) -> None:
        self._root = root
        self._members: dict[tuple[int, float], Process] = {}
        row = read_row(root.pid)
        self._leads_session = row is not None and row.session == root.pid and not root.ended()
        self._started = row.started if row else None
        if row and not root.ended():  # read first, then look whether it was the right process
            self._members[root.pid, row.started] = root
        self.settle()

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for member in self._members.values():
            if member is not self._root:
                member.close()

    def alive(self) -> list[Process]:
        """List the members that have not ended, the root first."""
        return [member for member in self._members.values() if not member.ended()]

    def refresh(self) -> list[Process]:
        """Look for members that came since, and list them."""
        table = read_table()
        alive = [key for key, member in self._members.items() if not member.ended()]
        roots = [pid for pid, _ in alive]
        # The session keeps its id, a PID, for as long as a member lives: it is still this one,
        # unless a later process has got that PID. Its members may outlive all that were seen.
        leader = table.get(self._root.pid)
        if self._leads_session and (leader is None or leader.started == self._started):
            roots += [pid for pid, row in table.items() if row.session == self._root.pid]
        fresh = []
        for pid in descendants(table, roots):
            if (pid, table[pid].started) not in self._members and (new := _open(pid, table[pid])):
                self._members[pid, table[pid].started] = new
                fresh.append(new)
        return fresh

    def settle(self, on_fresh: Callable[[Process], object] = lambda member: None) -> None:
        """Look for members until there are no more to find, but not for ever.

        Each that is found is passed to `on_fresh` before the next look.
        """
        for _ in range(_MOST_LOOKS):
            fresh = self.refresh()
            for member in fresh:
                on_fresh(member)
            if not fresh:
                return

    def wait_ended(
        self,
        seconds: float,
        interrupted: threading.Event,
        on_fresh: Callable[[Process], object] = lambda member: None,
    ) -> None:
        """Wait until all have ended, at most so long, or until `interrupted` is set.

        Members that appear meanwhile are waited for too, and passed to `on_fresh`.
        """
        deadline = time.monotonic() + seconds
        refresh_at = 0.0
        while True:
            if time.monotonic() >= refresh_at:
                for member in self.refresh():
                    on_fresh(member)
                refresh_at = time.monotonic() + _REFRESH_SECONDS
            if not self.alive() and not self.refresh():
                return
            if time.monotonic() >= deadline or interrupted.wait(_LOOK_SECONDS):
                return

    def stop(self, seconds: float, interrupted: threading.Event) -> signal.Signals | None:
        """End them all: SIGTERM, `seconds` of grace, SIGKILL, and as long to vanish.

        `alive()` then lists those that are left: not to be killed, or not ours to signal, or
        `interrupted` was set.

        Returns:
            The last signal of the two that was sent to any.
        """
        self.settle()
        signalled = [_terminate(member) for member in self.alive()]  # all, not until the first
        if any(signalled):
            self.wait_ended(seconds, interrupted, _terminate)
        sent = signal.SIGTERM if any(signalled) else None
        if interrupted.is_set():
            return sent
        # Stopped processes fork no more: what is found now is all of it.
        frozen = [_send(member, signal.SIGSTOP) for member in self.alive()]
        try:
            self.settle(lambda member: frozen.append(_send(member, signal.SIGSTOP)))
        finally:  # no descriptor may be left to look with: none stays stopped for good
            if any(frozen):
                for member in self.alive():
                    _kill(member)
            if self._leads_session:  # what forks and ends faster than one can look is in its group
                self._root.kill_group()
        if any(frozen):
            sent = signal.SIGKILL
            self.wait_ended(seconds, interrupted, _kill)
        return sent


def _open(pid: int, row: ProcessRow) -> Process | None:
    """Open a process of the table, if it still is the one that stands there."""
    try:
        process = Process(pid)
    except ProcessGone:
        return None
    now = read_row(pid)
    if now is None or now.started != row.started or process.ended():
        process.close()
        return None
    return process


def _terminate(process: Process) -> bool:
    # A stopped process takes no SIGTERM before it is continued.
    return _send(process, signal.SIGTERM) and _send(process, signal.SIGCONT)


def _kill(process: Process) -> bool:
    return _send(process, signal.SIGKILL)


def _send(process: Process, number: int) -> bool:
    """Send a signal; False where nothing was sent."""
    try:
        return process.send_signal(number)
    except PermissionError as error:
        _logger.warning("process %d may not be signalled: %s", process.pid, error)
        return False
