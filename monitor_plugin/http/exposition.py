"""What `/metrics` says, by prometheus_client (extra `[metrics]`): imported at the first scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import nlargest
from operator import itemgetter

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from ..api.schemas import machine
from ..domain.models import State, state_name
from ..domain.observation import Observation
from ..rpc.call_stats import DURATION_BOUNDS
from .resources.metrics import OPENMETRICS, MetricsSource

# A backend names its components itself, and each name is one more series in Prometheus.
_MOST_COMPONENTS = 32
_OTHER_COMPONENTS = "(other)"

_STATES = tuple(dict.fromkeys(map(state_name, (*State, None))))
_BUCKETS = (*map(str, DURATION_BOUNDS), "+Inf")


class Exposition:
    """The metrics in either format, from a registry of its own. Safe to call from any thread.

    Args:
        source: gives the figures, anew for each scrape.
    """

    def __init__(self, source: MetricsSource) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(source))

    def render(self, media_type: str) -> tuple[bytes, str]:
        """Give the metrics, and their content type.

        Args:
            media_type: OPENMETRICS, or any other for Prometheus' text format.
        """
        encode, content_type = choose_encoder(media_type if media_type == OPENMETRICS else "")
        return encode(self._registry), content_type


class _Collector:
    def __init__(self, source: MetricsSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Collect all families, each in one piece."""
        memory = GaugeMetricFamily(
            "monitor_machine_memory_bytes", "Physical memory of the machine.", unit="bytes"
        )
        memory.add_metric([], machine().memory_total)
        yield memory
        # By what tells their series apart: what moved during the sweep may have been seen twice.
        seen = {(each.backend.model, each.backend.address): each for each in self._source.sweep()}
        yield from self._gauges(seen)
        yield from self._calls(seen)
        yield from self._models()

    def _gauges(self, seen: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
        labels = ("model", "replica")
        up = GaugeMetricFamily(
            "monitor_backend_up",
            "Whether the backend answered when it was last asked for its status, "
            "if only that it has none.",
            labels=labels,
        )
        state = StateSetMetricFamily(
            "monitor_backend_state", "The state that the backend says it is in.", labels=labels
        )
        components = GaugeMetricFamily(
            "monitor_backend_memory_bytes",
            "Memory that the backend holds by component, where it or a hook tells them apart; "
            "they need not add up to the total.",
            labels=(*labels, "component"),
            unit="bytes",
        )
        total = GaugeMetricFamily(
            "monitor_backend_memory_total_bytes",
            "Memory that the backend holds: by its own word, else what its process tree holds.",
            labels=labels,
            unit="bytes",
        )
        resident = GaugeMetricFamily(
            "monitor_backend_process_resident_bytes",
            "Resident memory of the registered process.",
            labels=labels,
            unit="bytes",
        )
        cpu = CounterMetricFamily(
            "monitor_backend_process_cpu_seconds",
            "CPU time that the registered process has used.",
            labels=labels,
            unit="seconds",
        )
        for key, each in seen.items():
            status = each.reading.status if each.reading else None
            if each.reading:
                answered = status or each.reading.rpc_error == "UNIMPLEMENTED"
                up.add_metric(key, 1 if answered else 0)
            name = state_name(status.state if status else None)
            state.add_metric(key, {other: other == name for other in _STATES})
            if each.memory:
                total.add_metric(key, each.memory.total)
                for component, amount in _largest(each.memory.breakdown).items():
                    components.add_metric((*key, component), amount)
            if each.process and each.process.rss is not None:
                resident.add_metric(key, each.process.rss)
            if each.process and each.process.cpu_seconds is not None:
                cpu.add_metric(key, each.process.cpu_seconds)
        yield from (up, state, components, total, resident, cpu)

    def _calls(self, seen: Mapping[tuple[str, str], Observation]) -> Iterator[Metric]:
        labels = ("model", "replica")
        durations = HistogramMetricFamily(
            "monitor_backend_status_duration_seconds",
            "How long gRPC Status calls took, however they ended.",
            labels=labels,
            unit="seconds",
        )
        failures = CounterMetricFamily(
            "monitor_backend_status_failures",
            "gRPC Status calls that failed, by the code's name.",
            labels=(*labels, "code"),
        )
        for key, each in seen.items():
            counts = self._source.status_counts(each.backend)
            if counts:
                buckets = list(zip(_BUCKETS, counts.calls, strict=True))
                durations.add_metric(key, buckets, counts.seconds)
                for code, count in counts.failures.items():
                    failures.add_metric((*key, code), count)
        yield from (durations, failures)

    def _models(self) -> Iterator[Metric]:
        exits = CounterMetricFamily(
            "monitor_backend_exits",
            "Backends of the model that ended, by cause.",
            labels=("model", "cause"),
        )
        shutdowns = CounterMetricFamily(
            "monitor_backend_shutdowns",
            "Shutdowns of backends of the model that are over, by outcome.",
            labels=("model", "outcome"),
        )
        for model, counts in self._source.model_counts().items():
            for cause, count in counts.exits.items():
                exits.add_metric((model, cause), count)
            for outcome, count in counts.shutdowns.items():
                shutdowns.add_metric((model, outcome), count)
        yield from (exits, shutdowns)


def _largest(breakdown: Mapping[str, int]) -> dict[str, int]:
    """Give the largest components, and what the others add up to."""
    if len(breakdown) <= _MOST_COMPONENTS:
        return dict(breakdown)
    largest = dict(nlargest(_MOST_COMPONENTS - 1, breakdown.items(), key=itemgetter(1)))
    rest = sum(breakdown.values()) - sum(largest.values())
    return {**largest, _OTHER_COMPONENTS: rest + largest.get(_OTHER_COMPONENTS, 0)}
