"""Keeps a monitor's registry in line with what a host says runs now."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..domain.errors import InvalidBackend
from ..monitor import Monitor
from .discovery import Found

# A shutdown may outlive the process that it was asked to stop.
_GONE_KEPT = 1000

_logger = logging.getLogger(__name__)


class RegistrySync:
    """Registers what a host runs. Ends are noticed by the monitor itself.

    `sync()` is for one thread, `name_of()` for any.

    Args:
        monitor: where to register.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._names: dict[int, str] = {}
        self._refused: dict[Found, str] = {}

    def sync(self, found: Iterable[Found]) -> None:
        """Register what is not registered yet, or under another model or address.

        What the monitor refuses is logged once, and tried again at the next call.
        """
        registered = {each.pid: (each.model, each.address) for each in self._monitor.backends()}
        found, refused = list(found), {}
        names = {each.pid: each.name for each in found}
        self._names.update(names)  # before anybody can ask for the stop of one
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
                    _logger.warning("program %r: %s", each.name, error)
        gone = [(pid, name) for pid, name in self._names.items() if pid not in names]
        self._names, self._refused = {**dict(gone[-_GONE_KEPT:]), **names}, refused

    def name_of(self, pid: int) -> str | None:
        """Give the host's full name of the program whose backend has, or last had, that PID."""
        return self._names.get(pid)
