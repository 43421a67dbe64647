"""Stops the members of a backend."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterable

from .members import Members, MemberTable
from .process import Process, ProcessGone
from .process_table import ProcessIdentity, read_row

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_RESCAN_SECONDS = 0.1
_MAX_RESCANS = 20  # a tree may fork without end


class ProcessTree:
    """The members of a backend, held by handles through which they are signalled. Not thread-safe.

    Args:
        members: the members.
        table: takes the snapshots.

    Raises:
        OSError: no file descriptor is free.
    """

    def __init__(self, members: Members, table: MemberTable) -> None:
        self._members = members
        self._table = table
        self._handles: dict[ProcessIdentity, Process] = {}
        self.rescan_until_stable()

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            handle.close()

    def alive(self) -> list[Process]:
        """List the members that have not ended, the root first."""
        return [handle for handle in self._handles.values() if not handle.ended()]

    def rescan(self, signal_number: int | None = None) -> list[Process]:
        """Take a snapshot, add the members found in it, and return those that are new.

        Args:
            signal_number: a signal to send to each new member.

        Raises:
            OSError: no file descriptor is free.
        """
        self._table.rescan(self._members)
        new = []
        for identity in self._members.identities():
            if identity not in self._handles and (handle := _open(identity)):
                self._handles[identity] = handle
                new.append(handle)
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
            if root := self._handles.get(self._members.root):
                root.kill_group()  # also kills processes that fork and exit between two rescans
        if sent is signal.SIGKILL:
            self.wait_ended(seconds, interrupted, signal.SIGKILL)
        return sent


def _open(identity: ProcessIdentity) -> Process | None:
    """Open a process of a snapshot; None if it has ended, also if its PID was reused."""
    pid, started = identity
    try:
        process = Process(pid)
    except ProcessGone:
        return None
    row = read_row(pid)
    if row is None or row.started != started or process.ended():
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
