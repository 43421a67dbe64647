"""Stops for a hook: in the background, one at a time per backend, logged once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from monitor_plugin import Monitor, State, Status, hookimpl
from monitor_plugin.hook_support.background_stops import BackgroundStops

from ..support import Spawner, eventually, is_running, refuse_thread

_logger = logging.getLogger("a hook")


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [each for each in caplog.records if each.name == "a hook"]
    return [(each.levelno, each.getMessage()) for each in found]


@pytest.fixture
def stops(monitor: Monitor) -> BackgroundStops:
    stops = BackgroundStops(_logger, retry_seconds=0)
    stops.monitor = monitor
    return stops


def register(monitor: Monitor, spawner: Spawner, model: str = "m", port: int = 1) -> int:
    pid = spawner.sleeper().pid
    monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=f"127.0.0.1:{port}")
    return pid


def test_backend_is_stopped_once_with_a_reason(
    monitor: Monitor, spawner: Spawner, stops: BackgroundStops, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the given backend is stopped, once, and the log has the reason."""
    pid, other = register(monitor, spawner), register(monitor, spawner, port=2)
    backend = monitor.backends()[0]
    assert stops.stop(backend, "it was idle")
    eventually(lambda: not is_running(pid))
    assert is_running(other)
    eventually(lambda: not stops.under_way())
    assert records(caplog) == [
        (logging.WARNING, f"model 'm' (process {pid}) is being stopped: it was idle")
    ]


def test_stop_under_way_is_not_begun_again(
    monitor: Monitor, spawner: Spawner, stops: BackgroundStops
) -> None:
    """Also if a client or another hook began the stop."""
    asked, agree = threading.Event(), threading.Event()

    class Thinks:
        @hookimpl
        def monitor_stop_backend(self) -> None:
            asked.set()
            agree.wait(30)

    monitor.plugin_manager.register(Thinks())
    register(monitor, spawner)
    (backend,) = monitor.backends()
    assert stops.stop(backend, "")
    asked.wait(30)
    assert stops.under_way() == {backend}
    assert not stops.stop(backend, "")
    elsewhere = BackgroundStops(_logger)
    assert not elsewhere.stop(backend, "")  # it has no monitor yet
    elsewhere.monitor = monitor
    assert elsewhere.under_way() == {backend}
    assert not elsewhere.stop(backend, "")
    agree.set()
    eventually(lambda: not monitor.backends())


class BecomesBusy:
    """A backend that becomes BUSY when it is to be stopped; then `asked` is set."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    @hookimpl
    def monitor_query_status(self) -> Status:
        return Status(State.BUSY if self.asked.is_set() else State.READY)

    @hookimpl
    def monitor_before_shutdown(self) -> None:
        self.asked.set()


def test_backend_that_becomes_busy_is_spared(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """With `spare_busy` the backend still runs after the drain, and the log says so."""
    monitor = make_monitor([BecomesBusy()], drain_timeout_seconds=2.0)
    stops = BackgroundStops(_logger, retry_seconds=0)
    stops.monitor = monitor
    pid = register(monitor, spawner)
    (backend,) = monitor.backends()
    assert stops.stop(backend, "it was idle", spare_busy=True)
    eventually(lambda: not stops.under_way())
    assert is_running(pid)
    assert records(caplog)[1][1].endswith(
        f"it may be busy, and was to be spared then; still running: PID {pid}"
    )
    assert eventually(lambda: stops.stop(backend, "it is too large"))
    eventually(lambda: not is_running(pid))


@pytest.mark.parametrize("force", [False, True])
def test_client_that_joins_overrules_spare_busy(
    force: bool, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A client's shutdown stops the backend: after the drain, or immediately if forced."""
    becomes_busy = BecomesBusy()
    seconds = 60.0 if force else 1.0
    monitor = make_monitor([becomes_busy], drain_timeout_seconds=seconds)
    stops = BackgroundStops(_logger)
    stops.monitor = monitor
    pid = register(monitor, spawner)
    assert stops.stop(monitor.backends()[0], "it was idle", spare_busy=True)
    assert becomes_busy.asked.wait(30)
    monitor.shutdown("m", force)
    assert not is_running(pid)


def test_refused_stop_is_logged_once_and_retried(
    monitor: Monitor, spawner: Spawner, stops: BackgroundStops, caplog: pytest.LogCaptureFixture
) -> None:
    """Later refusals are logged at DEBUG; the next try comes after `retry_seconds`."""
    caplog.set_level(logging.DEBUG, "a hook")
    asked = []

    class Refuses:
        @hookimpl
        def monitor_before_shutdown(self, force: bool) -> str:
            asked.append(force)
            return "not today"

    monitor.plugin_manager.register(Refuses())
    register(monitor, spawner)
    (backend,) = monitor.backends()
    for times in (1, 2, 3):
        assert eventually(lambda: stops.stop(backend, "it was stuck", force=True))
        eventually(lambda: len(asked) == times and not stops.under_way())  # noqa: B023 - called here
    eventually(lambda: len(records(caplog)) == 6)
    levels = [level for level, _ in records(caplog)]
    assert levels == [logging.WARNING, logging.ERROR, *[logging.DEBUG] * 4]
    assert "refused: not today" in records(caplog)[1][1]
    assert asked == [True] * 3
    stops._retry_seconds = 1000
    stops.stop(backend, "")
    eventually(lambda: len(asked) == 4 and not stops.under_way())
    assert not stops.stop(backend, "")


def test_backend_that_ended_by_itself_is_no_failure(
    monitor: Monitor, spawner: Spawner, stops: BackgroundStops, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has no error."""
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    (backend,) = monitor.backends()
    process.kill()
    eventually(lambda: not monitor.backends())
    assert stops.stop(backend, "")
    eventually(lambda: not stops.under_way())
    assert [level for level, _ in records(caplog)] == [logging.WARNING]


def test_close_prevents_new_stops(
    monitor: Monitor, spawner: Spawner, stops: BackgroundStops
) -> None:
    """`stop` returns False after `close`."""
    register(monitor, spawner)
    stops.close()
    assert not stops.stop(monitor.backends()[0], "")


def test_stop_whose_thread_cannot_start_is_not_under_way(
    monitor: Monitor,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says so, and the next try stops the backend, without waiting for a retry."""
    stops = BackgroundStops(_logger, retry_seconds=60)
    stops.monitor = monitor
    pid = register(monitor, spawner)
    (backend,) = monitor.backends()

    with monkeypatch.context() as patch:
        refuse_thread(patch)
        assert not stops.stop(backend, "it was idle")
    assert not stops.under_way()
    level, text = records(caplog)[-1]
    assert level == logging.ERROR
    assert text == f"model 'm' (process {pid}) was not stopped: can't start new thread"
    assert stops.stop(backend, "it was idle")
    eventually(lambda: not is_running(pid))
