"""Registers the backends that a host runs with a monitor."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..domain.errors import InvalidBackend
from ..monitor import Monitor
from .discovery import DiscoveredBackend

# The number of ended backends whose program is remembered: a shutdown may outlive the process that
# it stops.
_MAX_ENDED = 1000

_logger = logging.getLogger(__name__)


class RegistrySync:
    """Registers the backends that a host runs. The monitor itself notices when they end.

    `sync()` must be called from one thread only, `program_of()` may be called from any.

    Args:
        monitor: the monitor with which to register.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._programs: dict[int, str] = {}
        self._refused: dict[DiscoveredBackend, str] = {}

    def sync(self, found: Iterable[DiscoveredBackend]) -> None:
        """Register each backend that is not registered, or has another model or address there.

        A registration that the monitor refuses is logged once, and tried again at the next call.
        """
        registered = {each.pid: (each.model, each.address) for each in self._monitor.backends()}
        found, refused = list(found), {}
        programs = {each.pid: each.program for each in found}
        self._programs.update(programs)  # first, as hooks may stop a backend once it is registered
        for each in found:
            if registered.get(each.pid) == (each.model, each.address):
                continue
            try:
                self._monitor.hook.monitor_backend_spawned(
                    model=each.model, pid=each.pid, address=each.address
                )
            except InvalidBackend as error:
                refused[each] = str(error)
                if self._refused.get(each) != str(error):
                    _logger.warning("program %r: %s", each.program, error)
        ended = [item for item in self._programs.items() if item[0] not in programs]
        self._programs, self._refused = {**dict(ended[-_MAX_ENDED:]), **programs}, refused

    def program_of(self, pid: int) -> str | None:
        """Return the full name of the program whose backend has, or last had, that PID."""
        return self._programs.get(pid)
