"""Registers the backends that a host runs with a monitor."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..domain.errors import InvalidBackend
from ..domain.models import Backend
from ..monitor import Monitor
from .discovery import DiscoveredBackend

# The number of ended backends whose program is remembered: a shutdown may outlive the process that
# it stops.
_MAX_ENDED = 1000

_logger = logging.getLogger(__name__)


class _Origin(NamedTuple):
    """The program of a registered process, and the program's own process."""

    program: str
    pid: int


class RegistrySync:
    """Registers the backends that a host runs. The monitor itself notices when they end.

    `sync()` must be called from one thread only, the other methods may be called from any.

    Args:
        monitor: the monitor with which to register.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._origins: dict[int, _Origin] = {}
        self._refused: dict[int, str] = {}  # the errors by the PID of the program's process

    def sync(self, found: Iterable[DiscoveredBackend]) -> None:
        """Register each backend that is not registered, or is so in another way.

        A program's own process is registered first. Once another of its members listens at the
        address, that one replaces it; if the listener ends, the program's own process is
        registered again. A registration that the monitor refuses is logged once, and tried again at
        the next call. During a shutdown of a model, only processes that are new are registered:
        they are those that the host has started again.
        """
        found = list(found)
        # By the PIDs that the host knows: another process may have been adopted.
        host_pid = self._monitor.host_pid
        registered = {host_pid(each.pid): each for each in self._monitor.backends()}
        stopping = {each.model for each in self._monitor.stopping()}
        previous, refused = self._origins, self._refused
        # Before the registration, as hooks may stop a backend once it is registered.
        origins = {
            pid: _Origin(each.program, each.pid)
            for each in found
            for member in {each.pid, each.listener, *registered.keys() & set(each.members)}
            if member is not None
            for pid in {member, registered[member].pid if member in registered else member}
        }
        self._origins = {**previous, **origins}
        self._refused = {}
        for each in found:
            if each.model in stopping and each.pid in previous:
                continue
            try:
                self._register(each, registered)
            except InvalidBackend as error:
                self._refused[each.pid] = str(error)
                if refused.get(each.pid) != str(error):
                    _logger.warning("program %r: %s", each.program, error)
        ended = [item for item in previous.items() if item[0] not in origins]
        self._origins = {**dict(ended[-_MAX_ENDED:]), **origins}

    def _register(self, found: DiscoveredBackend, registered: Mapping[int, Backend]) -> None:
        """Register a backend.

        Args:
            found: the backend.
            registered: the registered backends, by the PIDs that the host knows.

        Raises:
            InvalidBackend: the monitor refuses it.
        """
        current = next((pid for pid in found.members if pid in registered), found.pid)
        known = registered.get(current)
        if known is None or (known.model, known.address) != (found.model, found.address):
            self._spawned(found, current)
        if known is not None and known.pid != current:
            return  # the process that was adopted serves the address
        if found.listener is not None and found.listener != current:
            self._spawned(found, found.listener)

    def _spawned(self, found: DiscoveredBackend, pid: int) -> None:
        self._monitor.hook.monitor_backend_spawned(
            model=found.model, pid=pid, address=found.address
        )

    def program_of(self, pid: int) -> str | None:
        """Return the full name of the program whose backend has, or last had, that PID."""
        origin = self._origin_of(pid)
        return origin.program if origin else None

    def own_process_of(self, pid: int) -> int:
        """Return the PID of the program's own process for the PID of a backend.

        The two are the same if the program serves itself, or if the backend is not a program's.
        """
        origin = self._origin_of(pid)
        return origin.pid if origin else pid

    def is_adopted(self, pid: int) -> bool:
        """Whether a process was adopted in the place of a process that the host knows."""
        return self._monitor.host_pid(pid) != pid

    def _origin_of(self, pid: int) -> _Origin | None:
        """Find the origin of a process, also of one that was adopted since the last `sync`."""
        return self._origins.get(pid) or self._origins.get(self._monitor.host_pid(pid))
