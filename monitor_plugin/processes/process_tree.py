"""Stops the members of a backend."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable

from .members import Members, MemberTable
from .process import Process, ProcessGone
from .process_table import ProcessIdentity, read_row
from .resource_trackers import tracker_grace_seconds

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_RESCAN_SECONDS = 0.1
_MAX_RESCANS = 20  # a tree may fork without end


class ProcessTree:
    """The members of a backend, held by handles through which they are signalled. Not thread-safe.

    Args:
        members: the members.
        member_table: takes the snapshots.

    Raises:
        OSError: no file descriptor is free.
    """

    def __init__(self, members: Members, member_table: MemberTable) -> None:
        self._members = members
        self._member_table = member_table
        self._handles: dict[ProcessIdentity, Process] = {}
        self.rescan_until_stable()

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            handle.close()

    def identities(self) -> list[ProcessIdentity]:
        """List the members that were found since the start, also those that have ended."""
        return list(self._handles)

    def alive(self) -> list[Process]:
        """List the members that have not ended, the root first."""
        excluded = self._members.excluded()  # they were registered as another backend meanwhile
        return [
            each for each in self._handles.values() if each.pid not in excluded and not each.ended()
        ]

    def rescan(self, signal_number: int | None = None) -> list[Process]:
        """Take a snapshot, add the members found in it, and return those that are new.

        Args:
            signal_number: a signal to send to each new member that is no resource tracker.

        Raises:
            OSError: no file descriptor is free.
        """
        self._snapshot = self._member_table.rescan(self._members)
        new = []
        for identity in self._members.identities():
            if identity not in self._handles and (handle := _open(identity)):
                self._handles[identity] = handle
                new.append(handle)
        if signal_number is not None:
            _send_to_all(_without_trackers(new), signal_number)
        return new

    def rescan_until_stable(self, signal_number: int | None = None) -> None:
        """Rescan until no new member is found, at most 20 times: see `rescan`."""
        for _ in range(_MAX_RESCANS):
            if not self.rescan(signal_number):
                return

    def wait_ended(self, seconds: float, interrupted: threading.Event) -> None:
        """Wait until all members have ended, at most `seconds`, or until `interrupted` is set.

        Includes members that are found during the wait.
        """
        self._wait(self._all_ended, time.monotonic() + seconds, interrupted)

    def stop(
        self,
        seconds: float,
        interrupted: threading.Event,
        root_signal: int = signal.SIGTERM,
        *,
        root_first: bool = True,
    ) -> list[int]:
        """End all members: ask them to end, wait up to `seconds`, then send SIGKILL.

        The root gets its signal first. The other members get SIGTERM when the root has ended, or at
        half of `seconds`: a server can finish the requests that its workers handle. If the root had
        ended before, or may not be signalled, the others get SIGTERM immediately.

        Each member gets its signal once, also a member that is found during the wait, and then has
        at least half of `seconds` to end. SIGKILL follows at most 1.5 times `seconds` after the
        first signal. After SIGKILL, wait up to `seconds` again. Resource trackers get SIGKILL
        alone, some seconds after the others have ended: see `tracker_grace_seconds`.

        `alive()` then lists the members that still run: SIGKILL had no effect yet, the monitor may
        not signal them, or `interrupted` was set.

        Args:
            seconds: the grace.
            interrupted: when it is set, waits end, and no further signals are sent.
            root_signal: the signal that the root gets in place of SIGTERM.
            root_first: whether the other members get SIGTERM later than the root.

        Returns:
            The signals that were sent, in this order: `root_signal`, SIGTERM, SIGKILL. Each is
            listed once, and only if any member got it.

        Raises:
            OSError: no file descriptor is free. Members that got SIGSTOP have been killed.
        """
        sent = self._request_end(seconds, interrupted, root_signal, root_first)
        if not interrupted.is_set() and self._kill(seconds, interrupted):
            sent.append(signal.SIGKILL)
        return sent

    def _request_end(
        self, seconds: float, interrupted: threading.Event, root_signal: int, root_first: bool
    ) -> list[int]:
        """Send the first signals, and wait for the end of the members; return these signals."""
        self.rescan_until_stable()
        if not self.alive():
            self.rescan()  # the last member may have forked before it ended
        sent = []
        began = time.monotonic()
        root = self._handles.get(self._members.root)
        if root and _send(root, root_signal):
            sent.append(root_signal)
            if root_first:
                self._wait(root.ended, began + seconds / 2, interrupted)
                if interrupted.is_set():
                    return sent
        others = [each for each in _without_trackers(self.alive()) if each is not root]
        if _send_to_all(others, signal.SIGTERM) and signal.SIGTERM not in sent:
            sent.append(signal.SIGTERM)
        if sent:
            self._wait(
                self._only_trackers_run,
                began + seconds,
                interrupted,
                signal_number=signal.SIGTERM,
                least_seconds=seconds / 2,
            )
        return sent

    def _kill(self, seconds: float, interrupted: threading.Event) -> bool:
        """Send SIGKILL, to resource trackers last; return whether any member got it."""
        if not self.alive():  # the last rescan has found no other member
            self._kill_root_group()
            return False
        try:
            # Stopped processes do not fork: the last rescan has found every member.
            _send_to_all(_without_trackers(self.alive()), signal.SIGSTOP)
            self.rescan_until_stable(signal.SIGSTOP)
        finally:  # also if a rescan fails: no member may be left stopped by SIGSTOP
            # Children before their parents: if a process ends whose child is under SIGSTOP, the
            # kernel may send SIGHUP to the process group, and so to a tracker in it.
            others = reversed(_without_trackers(self.alive()))
            killed = _send_to_all(others, signal.SIGKILL)
            graces = [each for each in map(tracker_grace_seconds, self.alive()) if each]
            if not graces:
                self._kill_root_group()
        if killed:
            deadline = time.monotonic() + seconds
            self._wait(self._only_trackers_run, deadline, interrupted, signal.SIGKILL)
        if graces:
            deadline = time.monotonic() + max(graces)
            self._wait(self._all_ended, deadline, interrupted, signal.SIGKILL)
            if not interrupted.is_set():
                killed |= _send_to_all(self.alive(), signal.SIGKILL)
                self._kill_root_group()
                deadline = time.monotonic() + seconds
                self._wait(self._all_ended, deadline, interrupted, signal.SIGKILL)
        return killed

    def _kill_root_group(self) -> None:
        """Kill the root's process group, also its processes that end between two rescans.

        Not if another backend is in the group.
        """
        root = self._handles.get(self._members.root)
        if root and self._members.excluded().isdisjoint(self._snapshot.led_by(root.pid)):
            root.kill_group()

    def _all_ended(self) -> bool:
        return not self.alive()

    def _only_trackers_run(self) -> bool:
        """Whether no member runs but resource trackers."""
        return not any(tracker_grace_seconds(each) is None for each in self.alive())

    def _wait(
        self,
        is_over: Callable[[], bool],
        deadline: float,
        interrupted: threading.Event,
        signal_number: int | None = None,
        least_seconds: float = 0.0,
    ) -> None:
        """Wait until `is_over`, and then for as long as rescans find new members.

        Args:
            is_over: whether the wait may end.
            deadline: when the wait ends, by the monotonic clock.
            interrupted: ends the wait when it is set.
            signal_number: a signal to send to members that are found: see `rescan`.
            least_seconds: the least time from now, and from the finding of a member, to the end of
                the wait. It moves the deadline by as much at most.
        """
        latest = deadline + least_seconds
        now = time.monotonic()
        rescan_at = now + _RESCAN_SECONDS
        deadline = max(deadline, min(now + least_seconds, latest))
        while True:
            over = is_over()
            if over or time.monotonic() >= min(rescan_at, deadline):
                found = self.rescan(signal_number)
                now = time.monotonic()
                if over and not found:
                    return
                if found:
                    deadline = max(deadline, min(now + least_seconds, latest))
                rescan_at = now + _RESCAN_SECONDS
            if time.monotonic() >= deadline or interrupted.wait(_POLL_SECONDS):
                return


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


def _without_trackers(processes: Iterable[Process]) -> list[Process]:
    return [each for each in processes if tracker_grace_seconds(each) is None]


def _send_to_all(processes: Iterable[Process], number: int) -> bool:
    """Send a signal to each process; return whether at least one process got the signal."""
    sent = [_send(process, number) for process in processes]
    return any(sent)


def _send(process: Process, number: int) -> bool:
    try:
        sent = process.send_signal(number)
        if sent and number not in (signal.SIGSTOP, signal.SIGKILL):
            process.send_signal(signal.SIGCONT)  # a stopped process does not act on other signals
    except PermissionError as error:
        _logger.warning("process %d may not be signalled: %s", process.pid, error)
        return False
    return sent
