"""Stops, restarts or reports backends above a memory limit, per backend or for all together.

The memory of a backend is the total that `GET /backends` shows: the backend's own figure, else the
memory of its process tree. With COUNT=unreclaimable, only the part of the total that the kernel
cannot drop counts, so a model file that a backend maps into its memory does not count. If the
monitor cannot know this part, the whole total counts: for a backend's own figure, and for processes
that the monitor may not read. Pages of a file that a backend has locked (mlock) do not count,
although the kernel cannot drop them.

The monitor reads PSS and the kinds of memory in the background. A limit needs them with
COUNT=unreclaimable, and for backends of several processes, which may share most of their pages.
Then the last reading counts until the next one, and the memory of a new backend does not count
before its first reading.

Unknown memory exceeds no limit. If the memory of COMPONENT cannot be known, the log has an error at
the start, or after the first sweeps with a backend that is ready. The memory must exceed the limit
in each sweep for FOR_SECONDS, and in at least two sweeps, so that one wrong figure stops no
backend. The hook stops a backend as `POST /backend/shutdown` does. It spares backends that may be
busy: a backend that is BUSY or has requests, whose Status call timed out, or that has no status and
whose last known state is not READY. A backend that never had a status, or whose status does not
tell of requests (see idle_stop.py), may be busy while its process tree uses at least 1 % of one
core, or an unknown amount, or its GPU is in use (as for idle_stop.py). If the tree uses less, this
hook stops the backend, and idle_stop.py does not: a memory limit that spared every backend without
a status would protect few machines. The hook also spares a backend that gets requests and still has
some after `drain_timeout_seconds`. Backends that are being stopped, also by clients, do not count.
A stop that fails is tried again every minute. `monitor_plugin.hook_support.watchdogs` says how
models are restarted. The hook acts after each background sweep (the monitor's setting
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
                  all `vram:...`, or the memory of one device: `vram:nvidia0`
    COUNT         `all`, or `unreclaimable`: without the pages of files, which the kernel can drop;
                  not together with COMPONENT (all)
    ACTION        `stop`; `restart`, which starts the model again; or `tell`, which only reports the
                  backend, once, also if it may be busy (stop)
    PROTECT       patterns of models that are never stopped or restarted, only reported, and whose
                  memory counts: `llama-*,embed`
    RESTARTS_PER_HOUR   how often a model is restarted at most within an hour (5)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Mapping, Sequence

from monitor_plugin import Backend, Gpu, State, hookimpl
from monitor_plugin.domain.models import Observation
from monitor_plugin.hook_support import settings as read
from monitor_plugin.hook_support.idleness import Activity, held_bytes, unreclaimable_bytes
from monitor_plugin.hook_support.watchdogs import Watchdog
from monitor_plugin.hookspecs import Monitor

_logger = logging.getLogger(__name__)

_SWEEPS_WITHOUT_COMPONENT = 12


class MemoryLimit:
    """Acts on backends whose memory exceeds their limits."""

    def __init__(self, settings: read.HookSettings) -> None:
        wanted, sizes = "bytes, as 8GiB or llama-*=8GiB,*=1GiB", read.per_model(read.size)
        orders = read.one_of("lru", "largest")
        self._models = settings.get("MODELS", sizes, wanted, read.Limits({}))
        self._total = settings.get("TOTAL", read.size, "bytes, as 48GiB", None)
        self._order = settings.get("ORDER", orders, "lru or largest", "lru")
        self._stop_busy = settings.get("STOP_BUSY", read.yes_or_no, "yes or no", False)
        self._for_seconds = settings.get("FOR_SECONDS", read.seconds, "seconds, as 10", 10.0)
        self._component = settings.get("COMPONENT", str, "the name of a component, as vram", None)
        counts = read.one_of("all", "unreclaimable")
        count = settings.get("COUNT", counts, "all or unreclaimable", "all")
        if self._component and count == "unreclaimable":
            raise settings.error(
                "COUNT",
                "the kernel drops pages of the total, not of a component; unset COUNT or COMPONENT",
                count,
            )
        self._only_unreclaimable = count == "unreclaimable"
        self._variable = settings.variable("COMPONENT")
        has_limit = self._models.least() is not None or self._total is not None
        self._watches_component = has_limit and self._component is not None
        self._sweeps_without_component = 0
        self._activity = Activity(cpu_suffices=True)
        self._over_since: dict[Backend | None, float] = {}  # None: all backends together
        self._logged: set[Backend | None] = set()
        self.watchdog = Watchdog(settings, _logger)
        self.stops = self.watchdog.stops
        if not has_limit:
            models = settings.variable("MODELS")
            _logger.info("the hook does nothing: neither %s nor TOTAL is set", models)

    def check_component(self, monitor: Monitor) -> None:
        """Log an error if the component is memory of a GPU, and nothing reports it."""
        component = self._component
        if not self._watches_component or component is None:
            return
        if component.partition(":")[0] not in ("vram", "gtt"):
            return
        gpus = monitor.gpus()
        names = [name for gpu in gpus for name in _known_components(gpu)]
        if any(f"{name}:".startswith(f"{component}:") for name in names):
            self._watches_component = False
            return
        hooks = {figures.name for plugin in monitor.plugins() for figures in plugin.hooks}
        if "monitor_memory_components" in hooks:
            return
        self._watches_component = False
        _logger.error(
            "%s=%r limits nothing, unless backends report this component themselves: there is no "
            "such GPU whose processes are known, and no plugin reports memory components; GPUs: "
            "%s (monitor-plugin gpus says what is known of them)",
            self._variable,
            component,
            ", ".join(gpu.component for gpu in gpus) or "none",
        )

    def _watch_component(self, observations: Sequence[Observation]) -> None:
        """Log an error, once, if no backend has the component although some are ready."""
        if any(held_bytes(each, self._component) is not None for each in observations):
            self._watches_component = False
        elif any(map(_is_ready, observations)):
            self._sweeps_without_component += 1
            if self._sweeps_without_component == _SWEEPS_WITHOUT_COMPONENT:
                self._watches_component = False
                breakdowns = [each.memory.breakdown for each in observations if each.memory]
                names = sorted({name for breakdown in breakdowns for name in breakdown})
                _logger.error(
                    "%s=%r limits nothing: no backend had this component in %d sweeps; they have: "
                    "%s",
                    self._variable,
                    self._component,
                    _SWEEPS_WITHOUT_COMPONENT,
                    ", ".join(names) or "no component",
                )

    def _held_bytes(self, observation: Observation) -> int | None:
        if self._only_unreclaimable:
            return unreclaimable_bytes(observation)
        return held_bytes(observation, self._component)

    def check(self, observations: Sequence[Observation], now: float) -> None:
        """Act on backends that exceed a limit, given the observations of a sweep."""
        self._activity.note(observations, now)
        if self._watches_component:
            self._watch_component(observations)
        stopping = self.stops.under_way()
        used: dict[Backend, int] = {}
        # Idle seconds of the backends that may be stopped, and of those that are only told of.
        idle: dict[Backend, float] = {}
        for each in observations:
            amount = self._held_bytes(each)
            if amount is not None and each.backend not in stopping:
                used[each.backend] = amount
                spares_busy = self.watchdog.may_act(each.backend.model) and not self._stop_busy
                if not (spares_busy and self._activity.may_be_busy(each, now)):
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
        self.watchdog.end_sweep()

    def _reduce(
        self, key: Backend | None, why: str, used: dict[Backend, int], idle: Mapping[Backend, float]
    ) -> None:
        """Stop backends in order until the memory is within the limit; remove them from `used`.

        The key is the backend that exceeds its limit, or None for all backends together.
        """
        for backend in idle:
            if backend in used and self._is_over(key, used):
                figures = f"{read.size_text(used[backend])}, idle for {idle[backend]:.0f} s"
                reason = f"{why} (this backend: {figures})"
                condition = self._condition(key, backend)
                spare = not self._stop_busy
                if self.watchdog.act(backend, reason, spare_busy=spare, condition=condition):
                    del used[backend]
        may_act = self.watchdog.may_act(key.model) if key else self.watchdog.action != "tell"
        if may_act and self._is_over(key, used) and key not in self._logged:
            self._logged.add(key)
            whose = f"model {key.model!r} (process {key.pid})" if key else "all backends"
            _logger.warning("%s: %s, and no backend may be stopped now", whose, why)

    def _condition(self, key: Backend | None, backend: Backend) -> Hashable:
        """Identify what is told once: that a backend, or the total, exceeds its limit.

        With ACTION=tell, the total is told of with one backend, which may be another one in the
        next sweep.
        """
        if key is not None:
            return key
        return "total" if self.watchdog.action == "tell" else ("total", backend)

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


def _is_ready(observation: Observation) -> bool:
    """Whether a backend reports READY, or serves without implementing Status."""
    code = observation.reading.rpc_error if observation.reading else None
    return observation.state == State.READY or code == "UNIMPLEMENTED"


def _known_components(gpu: Gpu) -> list[str]:
    """List the components that the monitor reports for processes of a GPU, now or later."""
    if gpu.uses is None:
        return []
    names = []
    if not gpu.uses or any(use.memory is not None for use in gpu.uses):
        names.append(gpu.component)
    if gpu.vendor != "nvidia":
        names.append(gpu.component.replace("vram:", "gtt:", 1))
    return names


_limit = MemoryLimit(read.HookSettings(__name__))


monitor_closing = _limit.stops.monitor_closing


@hookimpl
def monitor_started(monitor: Monitor) -> None:
    """Store the monitor, and check the component."""
    _limit.stops.monitor_started(monitor)
    _limit.check_component(monitor)


@hookimpl
def monitor_readings_swept() -> None:
    """Act on backends that exceed a limit."""
    if _limit.stops.monitor:
        _limit.check(_limit.stops.monitor.sweep(fresh=False), time.monotonic())
