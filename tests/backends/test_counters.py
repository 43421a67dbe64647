"""Counts by model: exits by cause and shutdowns by outcome, while the model is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from monitor_plugin import Backend, Monitor, MonitorError, hookimpl
from monitor_plugin.backends import counters
from monitor_plugin.backends.counters import ModelCounter, ModelCounts
from monitor_plugin.backends.registry import MAX_EXITS, EndedBackend, Record, Registry
from monitor_plugin.domain.models import BackendExit

from ..support import Client, Spawner, eventually, register
from .conftest import make_record

T = TypeVar("T")


def backend(model: str, pid: int) -> Backend:
    return Backend(model, pid, f"127.0.0.1:{pid}", 1.0)


class ExitsRegistry(Registry):
    """A registry that takes exits of backends that were never registered."""

    def add_exit(self, backend: Backend, cause: str) -> None:
        exit = BackendExit(cause, None, None, None, time.time())
        self._exits[backend] = EndedBackend(backend, exit, None)
        self._trim_exits()

    def set_cause(self, backend: Backend, cause: str) -> None:
        exit = BackendExit(cause, 1, None, None, time.time())
        self.complete_exit(backend, lambda ended: ended._replace(exit=exit))


@pytest.fixture
def registry() -> ExitsRegistry:
    return ExitsRegistry()


@pytest.fixture
def counter(registry: ExitsRegistry) -> ModelCounter:
    return ModelCounter(registry)


def end(counter: ModelCounter, registry: ExitsRegistry, backend: Backend, cause: str) -> None:
    registry.add_exit(backend, cause)
    counter.count_exit(backend, registry.last_exits()[-1].exit)


def test_counts_of_a_new_model_are_zeros(monitor: Monitor, spawner: Spawner) -> None:
    """A model that runs has every cause and outcome, so that the first of each is an increase."""
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    (counts,) = [monitor._services.model_counter.counts()["m"]]
    assert counts.exits == dict.fromkeys(("shutdown", "exited", "killed", "oom", "unknown"), 0)
    assert counts.shutdowns == dict.fromkeys(("stopped", "failed", "refused", "respawned"), 0)


def test_counts_are_dropped_with_the_last_exit_of_a_model(
    counter: ModelCounter, registry: ExitsRegistry
) -> None:
    """The counts stay only while the registry has an exit of the model."""
    end(counter, registry, backend("m", 1), "killed")
    for pid in range(2, MAX_EXITS + 1):
        end(counter, registry, backend("other", pid), "exited")
    assert counter.counts()["m"].exits["killed"] == 1
    end(counter, registry, backend("other", 1000), "exited")
    assert list(counter.counts()) == ["other"]
    assert list(counter._models) == ["other"]  # the counts are freed, not only hidden


def test_counters_memory_is_bounded_for_any_number_of_models(
    counter: ModelCounter, registry: ExitsRegistry
) -> None:
    """Without any scrape, the counter has at most twice as many models as the registry."""
    for pid in range(1, 300):
        end(counter, registry, backend(f"m{pid}", pid), "unknown" if pid % 2 else "killed")
        counter.count_shutdown(backend(f"m{pid}", pid), "stopped")
    assert len(counter._models) <= 2 * MAX_EXITS


class CountingRegistry(Registry):
    """A registry that counts the records, models and exits that it lists."""

    listed = 0

    def _count(self, found: list[T]) -> list[T]:
        self.listed += len(found)
        return found

    def records(self, model: str | None = None) -> list[Record]:
        return self._count(super().records(model))

    def models(self) -> list[str]:
        return self._count(super().models())

    def last_exits(self) -> list[EndedBackend]:
        return self._count(super().last_exits())


@pytest.mark.parametrize("models", ["one model", "many models"])
@pytest.mark.parametrize("cause", ["killed", "unknown"])
def test_cost_of_an_exit_does_not_depend_on_the_number_of_backends(cause: str, models: str) -> None:
    """Many backends may end at the same time, for example with their host."""

    def listed_per_exit(backends: int) -> float:
        registry = CountingRegistry()
        counter = ModelCounter(registry)
        records = [
            make_record("m" if models == "one model" else f"m{pid}", pid)
            for pid in range(1, backends + 1)
        ]
        for record in records:
            registry.add(record, lambda: None)
        for record in records:
            exit = BackendExit(cause, None, None, None, time.time())
            registry.move_to_exits(record, exit, None, lambda ended: None)
            counter.count_exit(record.backend, exit)
            counter.count_shutdown(record.backend, "stopped")
        return registry.listed / backends

    assert listed_per_exit(4000) < 2 * listed_per_exit(500) + 1


def test_cause_that_is_reported_soon_is_counted_once(
    counter: ModelCounter, registry: ExitsRegistry
) -> None:
    """If a host reaps immediately and reports the cause soon after, no `unknown` is counted."""
    end(counter, registry, backend("m", 1), "unknown")
    assert set(counter.counts()["m"].exits.values()) == {0}
    registry.set_cause(backend("m", 1), "exited")
    for _ in range(2):
        exits = counter.counts()["m"].exits
        assert (exits["exited"], exits["unknown"]) == (1, 0)


def test_cause_that_is_not_reported_is_counted_as_unknown(
    counter: ModelCounter, registry: ExitsRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cause that was counted as unknown stays so, whatever is reported later."""
    monkeypatch.setattr(counters, "_CAUSE_WAIT_SECONDS", 0.0)
    end(counter, registry, backend("m", 1), "unknown")
    eventually(lambda: counter.counts()["m"].exits["unknown"] == 1)
    registry.set_cause(backend("m", 1), "exited")
    exits = counter.counts()["m"].exits
    assert (exits["exited"], exits["unknown"]) == (0, 1)


def counts(monitor: Monitor, model: str) -> ModelCounts:
    return monitor._services.model_counter.counts()[model]


class Refuses:
    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> str | None:
        return None if force else "it is needed"


def test_exits_and_shutdowns_of_real_backends_are_counted(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A refusal, a stop and a kill are each counted once, and stay with the model."""
    monitor = make_monitor(plugins=[Refuses()])
    client = Client(monitor.url)
    for port in (1, 2):
        process = spawner.sleeper()
        register(monitor, process.pid, "m", f"127.0.0.1:{port}")
        if port == 1:
            process.kill()
            eventually(lambda: not monitor.backends())
    assert client.shutdown("m").status == 409
    assert client.shutdown("m", force=True).status == 200
    assert not monitor.backends()
    eventually(lambda: sum(counts(monitor, "m").shutdowns.values()) == 2)
    eventually(lambda: sum(counts(monitor, "m").exits.values()) == 2)
    found = counts(monitor, "m")
    assert {cause: n for cause, n in found.exits.items() if n} == {"killed": 1, "shutdown": 1}
    assert {each: n for each, n in found.shutdowns.items() if n} == {"refused": 1, "stopped": 1}


class Host:
    """A host that does not stop its backends."""

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool:
        return False


def test_failed_shutdown_is_counted(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """If the host cannot stop a backend, that counts as a failed shutdown, and as no exit."""
    monitor = make_monitor(plugins=[Host()])
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    with pytest.raises(MonitorError):
        monitor.shutdown("m")
    assert counts(monitor, "m").shutdowns["failed"] == 1
    assert set(counts(monitor, "m").exits.values()) == {0}
