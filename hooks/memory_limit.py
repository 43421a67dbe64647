"""Stops backends whose memory exceeds a limit, per backend or for all backends together.

The memory of a backend is the total that `GET /backends` shows: the backend's own figure, else that
of its process tree. Unknown memory exceeds no limit. The memory must exceed the limit in each sweep
for FOR_SECONDS, and in at least two sweeps, so that one wrong figure stops no backend. The hook
stops a backend as `POST /backend/shutdown` does. It spares backends that may be busy: a backend
that is BUSY, whose Status call timed out, or that has no status and whose last known state is not
READY. A backend that never had a status, or that is READY by a hook, may be busy while its process
tree uses at least 1 % of one core, or an unknown amount. If the tree uses less, this hook stops the
backend, and idle_stop.py does not: a memory limit that spared every backend without a status would
protect few machines. The hook also spares a backend that becomes BUSY and stays BUSY for
`drain_timeout_seconds`. Backends that are being stopped, also by clients, do not count. A stop that
fails is tried again every minute. The hook acts after each background sweep (the monitor's setting
`sweep_interval_seconds`).

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
environment variables MONITOR_HOOK_MEMORY_LIMIT_...

    MODELS        the limit of each backend, in bytes by model: `llama-*=8GiB,*=500MB`; the first
                  matching pattern counts; `none`, or no matching pattern, means no limit
    TOTAL         the limit of all backends together, in bytes: `48GiB`
    ORDER         the backend to stop first above TOTAL: `lru`, the one with the longest idle time
                  (see idle_stop.py with NO_STATUS=cpu), or `largest` (lru)
    STOP_BUSY     `yes`: also stop backends that may be busy, after `drain_timeout_seconds` (no)
    FOR_SECONDS   how long the memory must exceed a limit, in seconds (10)
    COMPONENT     limit this component of the memory instead of the total: `vram`, which includes
                  all `vram:...`, or a single one: `vram:nvidia0`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from monitor_plugin import Backend, hookimpl
from monitor_plugin.domain.models import Observation
from monitor_plugin.hook_support import settings as read
from monitor_plugin.hook_support.background_stops import BackgroundStops
from monitor_plugin.hook_support.idleness import Activity, held_bytes

_logger = logging.getLogger(__name__)


class MemoryLimit:
    """Stops backends whose memory exceeds their limits."""

    def __init__(self, settings: read.HookSettings) -> None:
        wanted, sizes = "bytes, as 8GiB or llama-*=8GiB,*=1GiB", read.per_model(read.size)
        orders = read.one_of("lru", "largest")
        self._models = settings.get("MODELS", sizes, wanted, read.Limits({}))
        self._total = settings.get("TOTAL", read.size, "bytes, as 48GiB", None)
        self._order = settings.get("ORDER", orders, "lru or largest", "lru")
        self._stop_busy = settings.get("STOP_BUSY", read.yes_or_no, "yes or no", False)
        self._for_seconds = settings.get("FOR_SECONDS", read.seconds, "seconds, as 10", 10.0)
        self._component = settings.get("COMPONENT", str, "the name of a component, as vram", None)
        self._activity = Activity(cpu_suffices=True)
        self._over_since: dict[Backend | None, float] = {}  # None: all backends together
        self._logged: set[Backend | None] = set()
        self.stops = BackgroundStops(_logger)
        if not self._models.least() and not self._total:
            models = settings.variable("MODELS")
            _logger.info("the hook does nothing: neither %s nor TOTAL is set", models)

    def check(self, observations: Sequence[Observation], now: float) -> None:
        """Stop backends that exceed a limit, given the observations of a sweep."""
        self._activity.note(observations, now)
        stopping = self.stops.under_way()
        used: dict[Backend, int] = {}
        idle: dict[Backend, float] = {}  # idle seconds of the backends that may be stopped
        for each in observations:
            amount = held_bytes(each, self._component)
            if amount is not None and each.backend not in stopping:
                used[each.backend] = amount
                if self._stop_busy or not self._activity.may_be_busy(each, now):
                    idle[each.backend] = self._activity.idle_seconds(each.backend, now)
        over = self._over(used)
        self._over_since = {key: self._over_since.get(key, now) for key in over}
        self._logged &= over.keys()
        order = sorted(idle, key=lambda each: (-idle[each], -used[each]))
        if self._order == "largest":
            order.sort(key=lambda each: -used[each])
        for key, why in over.items():
            if now - self._over_since[key] >= self._for_seconds:
                victims = order if key is None else [key] if key in idle else []
                self._reduce(key, why, used, {each: idle[each] for each in victims})

    def _reduce(
        self, key: Backend | None, why: str, used: dict[Backend, int], idle: Mapping[Backend, float]
    ) -> None:
        """Stop backends in order until the memory is within the limit; remove them from `used`."""
        for backend in idle:
            if backend in used and self._is_over(key, used):
                figures = f"{read.size_text(used[backend])}, idle for {idle[backend]:.0f} s"
                reason = f"{why} (this backend: {figures})"
                if self.stops.stop(backend, reason, spare_busy=not self._stop_busy):
                    del used[backend]
        if self._is_over(key, used) and key not in self._logged:
            self._logged.add(key)
            whose = f"model {key.model!r} (process {key.pid})" if key else "all backends"
            _logger.warning("%s: %s, and no backend may be stopped now", whose, why)

    def _is_over(self, key: Backend | None, used: Mapping[Backend, int]) -> bool:
        return key in used if key else sum(used.values()) > (self._total or 0)

    def _over(self, used: Mapping[Backend, int]) -> dict[Backend | None, str]:
        """Return the exceeded limits, each with its reason; that of all backends comes last."""
        over: dict[Backend | None, str] = {}
        for backend, amount in used.items():
            limit = self._models.of(backend.model)
            if limit and amount > limit.value:
                used_text, most = read.size_text(amount), read.size_text(limit.value)
                over[backend] = f"uses {used_text}, over {most} for {limit.pattern!r}"
        total = sum(used.values())
        if self._total and total > self._total:
            used_text, most = read.size_text(total), read.size_text(self._total)
            over[None] = f"{len(used)} backends use {used_text}, over {most} in total"
        return over


_limit = MemoryLimit(read.HookSettings(__name__))


monitor_started = _limit.stops.monitor_started
monitor_closing = _limit.stops.monitor_closing


@hookimpl
def monitor_readings_swept() -> None:
    """Stop backends that exceed a limit."""
    if _limit.stops.monitor:
        _limit.check(_limit.stops.monitor.sweep(fresh=False), time.monotonic())
