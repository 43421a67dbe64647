"""How the main processes of units ended, in systemd's own words.

systemd forgets the result of a unit when it starts the unit again, which is 0.1 s later by default
(`RestartSec=`). So the results are taken from its signals, and stored by the PID of the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ...domain.units import HostExit

# The maximum number of exits that are stored.
_MAX_EXITS = 2000
# The values of `ExecMainCode`, as in waitid(2).
_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3


class UnitExits:
    """Stores how main processes ended. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exits: OrderedDict[int, HostExit] = OrderedDict()  # by PID, the oldest first

    def record(self, properties: Mapping[str, Any]) -> tuple[int, HostExit] | None:
        """Store what a signal says of the end of a unit's main process.

        Args:
            properties: the properties of the interface `org.freedesktop.systemd1.Service` that a
                signal `PropertiesChanged` has, or that `GetAll` returned.

        Returns:
            The PID and the exit, if this is news; None if the process runs, or none has run.
        """
        exit = read_exit(properties)
        pid = properties.get("ExecMainPID", 0)
        with self._lock:
            known = self._exits.pop(pid, None)  # of an earlier process if this one runs
            if exit is None:
                return None
            self._exits[pid] = exit
            if len(self._exits) > _MAX_EXITS:
                self._exits.popitem(last=False)
        return None if exit == known else (pid, exit)

    def of(self, pid: int) -> HostExit | None:
        """Return how the main process with that PID ended; None if that is not known."""
        with self._lock:
            return self._exits.get(pid)


def read_exit(properties: Mapping[str, Any]) -> HostExit | None:
    """Read how a unit's main process ended from the properties of the unit; None if it has not."""
    code, status = properties.get("ExecMainCode", 0), properties.get("ExecMainStatus", 0)
    result = str(properties.get("Result", ""))
    if code == _CLD_EXITED:
        return HostExit(result=result, exit_code=status, manager="systemd")
    if code in (_CLD_KILLED, _CLD_DUMPED):
        return HostExit(result=result, signal=status, manager="systemd")
    return None


def exit_code_of(exit: HostExit) -> int | None:
    """Return the exit code as in `subprocess`: a negative number is a signal."""
    return exit.exit_code if exit.signal is None else -exit.signal
