"""The pidfds of members, which show how a member ended also after its parent waited for it.

This needs Linux 6.15.
"""

from __future__ import annotations

import os
import threading

from ..config.descriptors import max_member_pidfds
from .process import keeps_exit_codes, read_exit_info
from .process_table import ProcessIdentity, read_row


class MemberPidfds:
    """Holds the pidfds of some members, at most `max_member_pidfds()`; none before Linux 6.15.

    Safe to call from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pidfds: dict[ProcessIdentity, int] = {}
        self._may_hold = keeps_exit_codes()

    def hold(self, identity: ProcessIdentity) -> None:
        """Hold the pidfd of a process, if it still runs and the number of pidfds allows it."""
        if not self._may_hold or len(self._pidfds) >= max_member_pidfds():
            return
        pid, started = identity
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            row = read_row(pid)  # open first, then check that the PID was not reused
        except OSError:
            row = None
        with self._lock:
            if row and row.started == started and self._may_hold and identity not in self._pidfds:
                self._pidfds[identity] = pidfd
                return
        os.close(pidfd)

    def release(self, identity: ProcessIdentity) -> int | None:
        """Close the pidfd of a process, if it is held; return the exit code, None if unknown."""
        with self._lock:
            pidfd = self._pidfds.pop(identity, None)
        if pidfd is None:
            return None
        try:
            return read_exit_info(pidfd)
        except OSError:
            return None
        finally:
            os.close(pidfd)

    def close(self) -> None:
        """Close all pidfds, and hold none from now on."""
        with self._lock:
            self._may_hold = False
            pidfds, self._pidfds = self._pidfds, {}
        for pidfd in pidfds.values():
            os.close(pidfd)
