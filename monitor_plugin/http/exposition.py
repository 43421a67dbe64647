"""The metrics of `/metrics`, rendered by prometheus_client (extra `[metrics]`).

`resources/metrics.py` imports this module at the first scrape; nothing else needs the extra.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from operator import itemgetter
from platform import python_version

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from ..api.results import escape
from ..api.schemas import GpuItem
from ..backends.counters import ModelCounts
from ..backends.registry import EndedBackend
from ..domain.known_models import MODEL_STATES, KnownModel
from ..domain.models import STARTING, Backend, Limits, LoadedPlugin, Observation, State, state_name
from ..domain.units import HostUnit
from ..domain.version import package_version
from ..gpu.reading import STALE_SECONDS, GpuReading
from ..readings.sweeper import Sweep
from ..rpc.call import DURATION_BOUNDS, StatusCounts

# A backend chooses the names of its components, and each name is another series in Prometheus.
_MAX_COMPONENTS = 32
_OTHERS = "(other)"

_LABELS = ("model", "replica")
# Fields of `TreeUsage`.
_KINDS = ("anonymous", "file", "shared", "swap")
_STATES = (*map(state_name, State), STARTING, state_name(None))
_GPU_LABELS = ("component", "uuid", "index", "name")
_BUCKETS = (*map(str, DURATION_BOUNDS), "+Inf")


class Exposition:
    """Renders the metrics as text or OpenMetrics, from its own registry. Thread-safe.

    Args:
        sweep: reads all backends; called at each scrape.
        list_gpus: lists the GPUs of the sweep.
        status_counts: returns the counts of a backend's `Status` calls; None before the first call.
        model_counts: returns the counts of exits and shutdowns by model.
        last_exits: lists the last exits.
        plugins: lists the plugins.
        own_limits: reads the limits of the monitor.
        known_models: lists the models that hosts can run.
        read_units: reads the units in which hosts run backends.
    """

    def __init__(
        self,
        sweep: Callable[[], Sweep],
        list_gpus: Callable[[GpuReading], Sequence[GpuItem]],
        status_counts: Callable[[Backend], StatusCounts | None],
        model_counts: Callable[[], Mapping[str, ModelCounts]],
        last_exits: Callable[[], Sequence[EndedBackend]],
        plugins: Callable[[], Sequence[LoadedPlugin]],
        own_limits: Callable[[], Limits],
        known_models: Callable[[], Sequence[KnownModel]],
        read_units: Callable[[Iterable[Backend]], Mapping[Backend, HostUnit]],
    ) -> None:
        self._sweep = sweep
        self._list_gpus = list_gpus
        self._status_counts = status_counts
        self._model_counts = model_counts
        self._last_exits = last_exits
        self._plugins = plugins
        self._own_limits = own_limits
        self._known_models = known_models
        self._read_units = read_units
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, media_type: str) -> tuple[bytes, str]:
        """Render the metrics as a media type; return them and their full content type."""
        encode, content_type = choose_encoder(media_type)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families; the registry calls this at each scrape."""
        build = GaugeMetricFamily(
            "monitor_build_info",
            "1, labeled with the versions of the monitor and of Python.",
            labels=("version", "python_version"),
        )
        build.add_metric((package_version(), python_version()), 1)
        yield build
        own_limits = self._own_limits()
        yield from _machine(own_limits)
        # A backend that was registered again during the sweep may be observed twice. Each pair of
        # labels may occur only once, so the later observation is used.
        sweep = self._sweep()
        observations = {
            (each.backend.model, each.backend.address): each for each in sweep.observations
        }
        yield from self._gauges(observations, own_limits)
        yield from _load(observations)
        yield from self._processes(observations)
        yield from self._calls(observations)
        yield from self._units(observations)
        yield self._left_behind()
        yield from self._models()
        yield from self._events()
        yield from _gpus(self._list_gpus(sweep.gpus))

    def _gauges(
        self, observations: Mapping[tuple[str, str], Observation], own_limits: Limits
    ) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "monitor_backend_up",
            "Whether the backend answered the last Status call, also with UNIMPLEMENTED; "
            "absent while it is starting.",
            labels=_LABELS,
        )
        state = StateSetMetricFamily(
            "monitor_backend_state", "The state that the backend reports.", labels=_LABELS
        )
        components = GaugeMetricFamily(
            "monitor_backend_memory_bytes",
            "Memory of the backend by component, as the backend or a hook reports it. "
            "The components need not add up to the total.",
            labels=(*_LABELS, "component"),
            unit="bytes",
        )
        total = GaugeMetricFamily(
            "monitor_backend_memory_total_bytes",
            "Memory of the backend: as it reports, or else the memory of its process tree.",
            labels=_LABELS,
            unit="bytes",
        )
        limit = GaugeMetricFamily(
            "monitor_backend_memory_limit_bytes",
            "Lowest memory limit of the control groups of the registered process. There is no "
            "sample if no limit is below the physical memory.",
            labels=_LABELS,
            unit="bytes",
        )
        for key, each in observations.items():
            if each.reading and not each.starting:
                answered = each.reading.status or each.reading.rpc_error == "UNIMPLEMENTED"
                up.add_metric(key, 1 if answered else 0)
            state.add_metric(key, {other: other == each.state_name for other in _STATES})
            if each.memory:
                total.add_metric(key, each.memory.total)
                for component, amount in _largest(each.memory.breakdown).items():
                    components.add_metric((*key, component), amount)
            limits = each.limits or own_limits
            if limits.memory_limit is not None:
                limit.add_metric(key, limits.memory_limit)
        yield from (up, state, components, total, limit)

    def _processes(self, observations: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
        resident = GaugeMetricFamily(
            "monitor_backend_process_resident_bytes",
            "Resident memory of the registered process.",
            labels=_LABELS,
            unit="bytes",
        )
        cpu = CounterMetricFamily(
            "monitor_backend_process_cpu_seconds",
            "CPU time that the registered process has used.",
            labels=_LABELS,
            unit="seconds",
        )
        kinds = GaugeMetricFamily(
            "monitor_backend_process_memory_bytes",
            "Memory of the backend's process tree by kind, with shared pages counted once. "
            "PSS is the sum of anonymous, file and shared.",
            labels=(*_LABELS, "kind"),
            unit="bytes",
        )
        age = GaugeMetricFamily(
            "monitor_backend_process_memory_age_seconds",
            "How long ago the memory of the backend's process tree was read by kind.",
            labels=_LABELS,
            unit="seconds",
        )
        for key, each in observations.items():
            if each.process and each.process.rss is not None:
                resident.add_metric(key, each.process.rss)
            if each.process and each.process.cpu_seconds is not None:
                cpu.add_metric(key, each.process.cpu_seconds)
            if each.tree and each.tree.memory_age_seconds is not None:
                age.add_metric(key, each.tree.memory_age_seconds)
                for kind in _KINDS:
                    if (amount := getattr(each.tree, kind)) is not None:
                        kinds.add_metric((*key, kind), amount)
        yield from (resident, cpu, kinds, age)

    def _calls(self, observations: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "monitor_backend_status_duration_seconds",
            "Duration of gRPC Status calls, successful or not.",
            labels=_LABELS,
            unit="seconds",
        )
        failures = CounterMetricFamily(
            "monitor_backend_status_failures",
            "gRPC Status calls that failed, by the code's name.",
            labels=(*_LABELS, "code"),
        )
        for key, each in observations.items():
            counts = self._status_counts(each.backend)
            if counts:
                buckets = list(zip(_BUCKETS, counts.calls, strict=True))
                durations.add_metric(key, buckets, counts.seconds)
                for code, count in counts.failures.items():
                    failures.add_metric((*key, code), count)
        yield from (durations, failures)

    def _units(self, observations: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
        labels = (*_LABELS, "manager", "unit")
        families = {
            field: GaugeMetricFamily(f"monitor_unit_{name}", text, labels=labels, unit=unit)
            for field, name, unit, text in (
                (
                    "memory_current",
                    "memory_bytes",
                    "bytes",
                    "Memory that the processes of the backend's unit use, as its host says.",
                ),
                (
                    "memory_max",
                    "memory_max_bytes",
                    "bytes",
                    "Memory that they may use. There is no sample without a limit.",
                ),
                ("memory_peak", "memory_peak_bytes", "bytes", "The most memory they have used."),
                ("tasks", "tasks", "", "The number of their threads."),
                (
                    "cpu_quota",
                    "cpu_quota_cores",
                    "cores",
                    "CPU cores that they may use. There is no sample without a limit.",
                ),
            )
        }
        restarts = CounterMetricFamily(
            "monitor_unit_restarts",
            "Restarts of the backend's unit by its host itself.",
            labels=labels,
        )
        units = self._read_units([each.backend for each in observations.values()])
        for key, each in observations.items():
            unit = units.get(each.backend)
            if unit is None:
                continue
            names = (*key, unit.manager, unit.name)
            for field, family in families.items():
                if (amount := getattr(unit, field)) is not None:
                    family.add_metric(names, amount)
            if unit.restarts is not None:
                restarts.add_metric(names, unit.restarts)
        yield from (*families.values(), restarts)

    def _left_behind(self) -> Metric:
        processes = GaugeMetricFamily(
            "monitor_backend_left_behind_processes",
            "Processes that backends at this address left behind when they ended, and that still "
            "run. There is no sample if there are none.",
            labels=_LABELS,
        )
        counts: Counter[tuple[str, str]] = Counter()
        for each in self._last_exits():
            counts[each.backend.model, each.backend.address] += len(each.left_behind or ())
        for key, count in counts.items():
            if count:
                processes.add_metric(key, count)
        return processes

    def _models(self) -> Iterator[Metric]:
        exits = CounterMetricFamily(
            "monitor_backend_exits",
            "Backends of the model that ended, by cause.",
            labels=("model", "cause"),
        )
        shutdowns = CounterMetricFamily(
            "monitor_backend_shutdowns",
            "Shutdowns of backends of the model that have ended, by outcome.",
            labels=("model", "outcome"),
        )
        for model, counts in self._model_counts().items():
            for cause, count in counts.exits.items():
                exits.add_metric((model, cause), count)
            for outcome, count in counts.shutdowns.items():
                shutdowns.add_metric((model, outcome), count)
        states = GaugeMetricFamily(
            "monitor_model_state",
            "1 for the state of the model that its host says, 0 for the other states.",
            labels=("model", "state"),
        )
        for known in self._known_models():
            for state in MODEL_STATES:
                states.add_metric((known.model, state), state == known.state)
        yield from (exits, shutdowns, states)

    def _events(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "monitor_plugin_events_waiting",
            "Events that wait for the hooks of the plugin.",
            labels=("plugin",),
        )
        oldest = GaugeMetricFamily(
            "monitor_plugin_events_oldest_seconds",
            "How long the oldest event that waits for the hooks of the plugin has waited.",
            labels=("plugin",),
            unit="seconds",
        )
        coalesced = CounterMetricFamily(
            "monitor_plugin_events_coalesced",
            "Changes of state that were merged into newer ones, because the plugin was behind.",
            labels=("plugin",),
        )
        dropped = CounterMetricFamily(
            "monitor_plugin_events_dropped",
            "Events that the plugin did not get: too many waited, or its hook did not return.",
            labels=("plugin",),
        )
        # A plugin of the host's manager may have the same name as one of the monitor's.
        figures = {escape(each.name): each.events for each in self._plugins() if each.events}
        for name, events in figures.items():
            waiting.add_metric((name,), events.waiting)
            oldest.add_metric((name,), events.oldest_seconds)
            coalesced.add_metric((name,), events.coalesced)
            dropped.add_metric((name,), events.dropped)
        yield from (waiting, oldest, coalesced, dropped)


def _load(observations: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
    """Yield what the backends report of their requests, without the figures that they do not."""
    running = GaugeMetricFamily(
        "monitor_backend_requests_running",
        "Requests that the backend reports to be working on.",
        labels=_LABELS,
    )
    waiting = GaugeMetricFamily(
        "monitor_backend_requests_waiting",
        "Requests that the backend reports to be waiting for it.",
        labels=_LABELS,
    )
    tokens = GaugeMetricFamily(
        "monitor_backend_tokens_per_second",
        "Tokens that the backend generates per second, for all requests together.",
        labels=_LABELS,
    )
    kv_cache = GaugeMetricFamily(
        "monitor_backend_kv_cache_ratio",
        "Part of the backend's KV cache that is used.",
        labels=_LABELS,
        unit="ratio",
    )
    for key, each in observations.items():
        status = each.reading.status if each.reading else None
        if status is None:
            continue
        if status.requests_running is not None:
            running.add_metric(key, status.requests_running)
        if status.requests_waiting is not None:
            waiting.add_metric(key, status.requests_waiting)
        if status.tokens_per_second is not None:
            tokens.add_metric(key, status.tokens_per_second)
        if status.kv_cache_percent is not None:
            kv_cache.add_metric(key, status.kv_cache_percent / 100)
    yield from (running, waiting, tokens, kv_cache)


def _machine(limits: Limits) -> Iterator[Metric]:
    """Yield the figures of the machine, and of the limits of the monitor, that are known."""
    pressures = [
        None if percent is None else percent / 100
        for percent in (limits.memory_pressure, limits.cpu_pressure)
    ]
    waited = "Share of the last 10 s in which some process of the machine waited for"
    for name, text, unit, amount in (
        ("memory", "Physical memory of the machine.", "bytes", psutil.virtual_memory().total),
        (
            "memory_limit",
            "Lowest memory limit of the monitor's control groups. There is no sample if no limit "
            "is below the physical memory.",
            "bytes",
            limits.memory_limit,
        ),
        (
            "memory_available",
            "Memory that the monitor could use before a limit, or the physical memory, is reached.",
            "bytes",
            limits.memory_available,
        ),
        (
            "cpu_limit",
            "CPU cores that the monitor may use: the lowest quota of its control groups, or the "
            "cores that it may run on.",
            "cores",
            limits.cpu_limit,
        ),
        ("memory_pressure", f"{waited} memory.", "ratio", pressures[0]),
        ("cpu_pressure", f"{waited} a CPU core.", "ratio", pressures[1]),
    ):
        family = GaugeMetricFamily(f"monitor_machine_{name}_{unit}", text, unit=unit)
        if amount is not None:
            family.add_metric([], amount)
        yield family


def _gpus(gpus: Sequence[GpuItem]) -> Iterator[Metric]:
    """Yield the metrics of GPUs; only their age if they were read too long ago."""
    if not gpus:
        return
    families = {
        field: GaugeMetricFamily(f"monitor_gpu_{name}", text, labels=_GPU_LABELS, unit=unit)
        for field, name, unit, text in (
            ("age_seconds", "age_seconds", "seconds", "How long ago the GPU was read."),
            ("total", "memory_total_bytes", "bytes", "Memory on the GPU."),
            ("used", "memory_used_bytes", "bytes", "Memory on the GPU that is in use."),
            ("free", "memory_free_bytes", "bytes", "Memory on the GPU that is free."),
            ("gtt_total", "gtt_total_bytes", "bytes", "System memory that the GPU may use."),
            ("gtt_used", "gtt_used_bytes", "bytes", "System memory that the GPU uses."),
            (
                "utilization_percent",
                "utilization_ratio",
                "ratio",
                "Part of the driver's last sample period in which the GPU worked.",
            ),
            ("temperature_celsius", "temperature_celsius", "celsius", "Temperature of the GPU."),
            ("power_watts", "power_watts", "watts", "Power that the GPU draws."),
        )
    }
    held = GaugeMetricFamily(
        "monitor_gpu_memory_held_bytes",
        "Memory on the GPU that is in use, by holder: `ours` (backends), `others` (other "
        "processes) and `unexplained`. A sum that is not known is absent.",
        labels=(*_GPU_LABELS, "holder"),
        unit="bytes",
    )
    for each in gpus:
        index = "" if each.index is None else str(each.index)
        labels = (each.component, each.uuid or "", index, each.name or "")
        is_stale = each.age_seconds is None or each.age_seconds > STALE_SECONDS
        for field, family in families.items():
            value = getattr(each, field)
            if value is None or (is_stale and field != "age_seconds"):
                continue
            family.add_metric(labels, value / 100 if field == "utilization_percent" else value)
        for holder in ("ours", "others", "unexplained"):
            value = getattr(each, holder)
            if value is not None and not is_stale:
                held.add_metric((*labels, holder), value)
    yield from (*families.values(), held)


def _largest(breakdown: Mapping[str, int]) -> dict[str, int]:
    """Keep the largest components and add up the others."""
    if len(breakdown) <= _MAX_COMPONENTS:
        return dict(breakdown)
    largest = dict(nlargest(_MAX_COMPONENTS - 1, breakdown.items(), key=itemgetter(1)))
    rest = sum(breakdown.values()) - sum(largest.values())
    return {**largest, _OTHERS: rest + largest.get(_OTHERS, 0)}
