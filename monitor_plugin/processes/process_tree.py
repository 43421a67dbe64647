"""Finds the processes that belong to one root process, and stops them."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterable

from .process import Process, ProcessGone
from .process_table import ProcessRow, read_row, take_snapshot

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_RESCAN_SECONDS = 0.1
_MAX_RESCANS = 20  # a tree may fork without end


class ProcessTree:
    """A root process, its descendants, and the processes of the session that the root leads.

    Every process that was found once stays a member, also after its parent has ended. Not
    thread-safe.

    Args:
        root: the process; the tree does not close it.

    Raises:
        OSError: no file descriptor is free.
    """

    def __init__(self, root: Process) -> None:
        self._root = root
        self._members: dict[tuple[int, float], Process] = {}  # by PID and start time
        row = read_row(root.pid)
        if root.ended():  # read first, then check that the PID was not reused
            row = None
        self._leads_session = row is not None and row.session == root.pid
        self._root_started = row.started if row else None
        if row:
            self._members[root.pid, row.started] = root
        self.rescan_until_stable()

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *error: object) -> None:
        for member in self._members.values():
            if member is not self._root:
                member.close()

    def alive(self) -> list[Process]:
        """List the members that have not ended, the root first."""
        return [member for member in self._members.values() if not member.ended()]

    def rescan(self, signal_number: int | None = None) -> list[Process]:
        """Take a snapshot, add the members found in it, and return those that are new.

        Args:
            signal_number: a signal to send to each new member.

        Raises:
            OSError: no file descriptor is free.
        """
        snapshot = take_snapshot()
        # A member that has ended since the snapshot is a root, too: the snapshot has its children.
        roots = [pid for pid, row in snapshot.rows.items() if (pid, row.started) in self._members]
        # The session may outlive every known member. Its ID is the root's PID, which the kernel
        # does not reuse while the session has a process. So the session is this tree's unless a
        # later process has the root's PID.
        leader = snapshot.rows.get(self._root.pid)
        if self._leads_session and (leader is None or leader.started == self._root_started):
            roots += [pid for pid, row in snapshot.rows.items() if row.session == self._root.pid]
        new = []
        for pid in snapshot.tree(*roots):
            row = snapshot.rows[pid]
            if (pid, row.started) not in self._members and (member := _open(pid, row)):
                self._members[pid, row.started] = member
                new.append(member)
        if signal_number is not None:
            _send_to_all(new, signal_number)
        return new

    def rescan_until_stable(self, signal_number: int | None = None) -> None:
        """Rescan until no new member is found, at most 20 times: see `rescan`."""
        for _ in range(_MAX_RESCANS):
            if not self.rescan(signal_number):
                return

    def wait_ended(
        self, seconds: float, interrupted: threading.Event, signal_number: int | None = None
    ) -> None:
        """Wait until all members have ended, at most `seconds`, or until `interrupted` is set.

        Includes members that are found during the wait. If `signal_number` is given, each member
        that is found gets this signal, and at least half of `seconds` to end; the wait then takes
        at most 1.5 times `seconds`.
        """
        began = time.monotonic()
        deadline = began + seconds
        rescan_at = began
        while True:
            all_ended = not self.alive()
            if all_ended or time.monotonic() >= min(rescan_at, deadline):
                found = self.rescan(signal_number)
                now = time.monotonic()
                if all_ended and not found:
                    return
                if found and signal_number is not None:
                    deadline = max(deadline, min(now + seconds / 2, began + 1.5 * seconds))
                rescan_at = now + _RESCAN_SECONDS
            if time.monotonic() >= deadline or interrupted.wait(_POLL_SECONDS):
                return

    def stop(self, seconds: float, interrupted: threading.Event) -> signal.Signals | None:
        """End all members: send SIGTERM, wait up to `seconds`, then send SIGKILL.

        Each member gets SIGTERM once, also a member that is found during the wait: see
        `wait_ended`. After SIGKILL, wait up to `seconds` again. `alive()` then lists the members
        that still run: SIGKILL had no effect yet, the monitor may not signal them, or `interrupted`
        was set.

        Returns:
            The last signal that was sent to any member; None if none was sent.

        Raises:
            OSError: no file descriptor is free. Members that got SIGSTOP have been killed.
        """
        sent = None
        self.rescan_until_stable()
        members = self.alive() or self.rescan()  # the last member may have forked before it ended
        if _send_to_all(members, signal.SIGTERM):
            sent = signal.SIGTERM
            self.wait_ended(seconds, interrupted, signal.SIGTERM)
        if interrupted.is_set():
            return sent
        try:
            # Stopped processes do not fork: the last rescan has found every member.
            _send_to_all(self.alive(), signal.SIGSTOP)
            self.rescan_until_stable(signal.SIGSTOP)
        finally:  # also if a rescan fails: no member may be left stopped by SIGSTOP
            if _send_to_all(self.alive(), signal.SIGKILL):
                sent = signal.SIGKILL
            if self._leads_session:  # also kills processes that fork and exit between two rescans
                self._root.kill_group()
        if sent is signal.SIGKILL:
            self.wait_ended(seconds, interrupted, signal.SIGKILL)
        return sent


def _open(pid: int, row: ProcessRow) -> Process | None:
    """Open a process of a snapshot; None if it has ended, also if its PID was reused."""
    try:
        process = Process(pid)
    except ProcessGone:
        return None
    now = read_row(pid)
    if now is None or now.started != row.started or process.ended():
        process.close()
        return None
    return process


def _send_to_all(processes: Iterable[Process], number: int) -> bool:
    """Send a signal to each process; return whether at least one process got the signal."""
    sent = [_send(process, number) for process in processes]
    return any(sent)


def _send(process: Process, number: int) -> bool:
    try:
        sent = process.send_signal(number)
        if sent and number == signal.SIGTERM:
            process.send_signal(signal.SIGCONT)  # a stopped process does not act on SIGTERM
    except PermissionError as error:
        _logger.warning("process %d may not be signalled: %s", process.pid, error)
        return False
    return sent
