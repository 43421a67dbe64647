"""Lists the backends, and the last ones that have ended."""

from __future__ import annotations

import time

from ..backends.registry import Registry
from ..readings.sweeper import Sweeper
from ..shutdown.coordinator import ShutdownCoordinator
from .items import backend_item, end_item, machine
from .schemas import BackendsAnswer


class Lister:
    """Lists the backends, and the last ones that have ended.

    Args:
        registry: holds the backends that have ended.
        sweeper: reads the backends.
        shutdowns: gives the progress of each shutdown.
        node: the name of this node; None where it is in no cluster.
    """

    def __init__(
        self,
        registry: Registry,
        sweeper: Sweeper,
        shutdowns: ShutdownCoordinator,
        node: str | None = None,
    ) -> None:
        self._registry = registry
        self._sweeper = sweeper
        self._shutdowns = shutdowns
        self._node = node

    def list(self, model: str | None, fresh: bool) -> BackendsAnswer:
        """List the backends of one model or of all, read now or as the last sweep found them."""
        observations = self._sweeper.sweep(model) if fresh else self._sweeper.last(model)
        progress = self._shutdowns.progress()
        now = time.time()
        return BackendsAnswer(
            [
                backend_item(each, progress.get(each.backend), now, self._node)
                for each in observations
            ],
            [
                end_item(each, self._node)
                for each in reversed(self._registry.ends())
                if model in (None, each.backend.model)
            ],
            machine(),
        )
