"""The models that hosts can run: what they list, and what is kept if they fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from monitor_plugin import KnownModel, Monitor, hookimpl
from monitor_plugin.operations import known_models

from ..support import Client, Spawner, load_sleeper


class Host:
    """Lists what it is told to, or raises it."""

    def __init__(self, models: Any) -> None:
        self.models = models
        self.calls = 0

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        self.calls += 1
        if isinstance(self.models, Exception):
            raise self.models
        models: Sequence[KnownModel] = self.models
        return models


@pytest.fixture(autouse=True)
def always_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "_MAX_AGE_SECONDS", 0.0)


def test_backends_list_has_models_without_a_backend(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """`models` of /backends, with the facts of the host; with `model` only that one."""
    listed = [
        KnownModel("a", "stopped", can_start=True),
        KnownModel("b", "running"),
        KnownModel("c", "failed", "exited too quickly", can_start=True),
    ]
    monitor = make_monitor([Host(listed)])
    load_sleeper(monitor, spawner, "b")
    client = Client(monitor.url)
    items = [
        {"model": "a", "state": "stopped", "detail": None, "can_start": True},
        {"model": "c", "state": "failed", "detail": "exited too quickly", "can_start": True},
    ]
    assert client.request("GET", "/backends").json["models"] == items
    assert client.request("GET", "/v1/backends?model=c").json["models"] == items[1:]
    assert client.request("GET", "/backends?model=b").json["models"] == []
    assert monitor.known_models() == listed


def test_first_host_that_lists_a_model_counts(make_monitor: Callable[..., Monitor]) -> None:
    """The first item of one list counts too. Hooks that were registered last are called first."""
    first = Host([KnownModel("a", "stopped"), KnownModel("a", "failed")])
    second = Host([KnownModel("a", "exited"), KnownModel("b", "waiting")])
    monitor = make_monitor([second, first])
    assert monitor.known_models() == [KnownModel("a", "stopped"), KnownModel("b", "waiting")]


@pytest.mark.parametrize(
    "invalid",
    [
        RuntimeError("the host is away"),
        "stopped",
        {"a": "stopped"},
        [("a", "stopped")],
        [KnownModel("a", "asleep")],
        [KnownModel("", "stopped")],
        [KnownModel("a\n", "stopped")],
        [KnownModel(5, "stopped")],  # type: ignore[arg-type]
        [KnownModel("a", ["stopped"])],  # type: ignore[arg-type]
        [KnownModel("a", "stopped", b"x")],  # type: ignore[arg-type]
        [KnownModel("a", "stopped", None, "yes")],  # type: ignore[arg-type]
    ],
)
def test_list_that_cannot_be_used_leaves_the_last_one(
    invalid: Any, make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, and other hosts are not affected."""
    host, other = Host([KnownModel("a", "stopped")]), Host([KnownModel("b", "exited")])
    monitor = make_monitor([host, other])
    assert {each.model for each in monitor.known_models()} == {"a", "b"}
    host.models = invalid
    other.models = [KnownModel("b", "waiting"), KnownModel("c", "stopped")]
    states = {each.model: each.state for each in monitor.known_models()}
    assert states == {"a": "stopped", "b": "waiting", "c": "stopped"}
    assert "monitor_list_models" in caplog.text
    services = monitor._services.known_models
    found = services.find("a")
    assert found is not None
    assert found.state == "stopped"
    assert services.find_current("a") is None  # it may be another state by now
    assert services.find_current("b") == KnownModel("b", "waiting")
    host.models = []
    assert {each.model for each in monitor.known_models()} == {"b", "c"}


def test_lists_are_asked_for_once_a_second(
    make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of clients that list backends does not matter."""
    monkeypatch.setattr(known_models, "_MAX_AGE_SECONDS", 3600.0)
    host = Host([KnownModel("a", "stopped")])
    monitor = make_monitor([host])
    for _ in range(10):
        assert Client(monitor.url).request("GET", "/backends").json["models"]
        assert monitor.known_models()
    assert host.calls == 1
