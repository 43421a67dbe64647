"""Shutdowns of models: permitted by hooks, one at a time, and watched for a respawn."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin import (
    Backend,
    InvalidRequest,
    ModelNotLoaded,
    Monitor,
    ShutdownFailed,
    ShutdownRefused,
    hookimpl,
)
from monitor_plugin.shutdown import coordinator as shutdown

from ..support import Client, Spawner, eventually, is_running, refuse_thread, register
from .support import StaysBusy, fail, overrun


class Finished:
    """A plugin that records the outcomes of shutdowns."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str]] = []

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append((backend.pid, outcome))


def waiters(future: Future[Any]) -> list[object]:
    found: list[object] = future._condition._waiters  # type: ignore[attr-defined]
    return found


def test_simultaneous_shutdowns_share_one_stop(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A second shutdown joins the first; if the second is forced, both continue immediately."""
    finished = Finished()
    monitor = make_monitor(plugins=[finished], drain_timeout_seconds=3600)
    backend = spawner.backend("--state", "1")
    register(monitor, backend.pid, address=backend.address)
    with ThreadPoolExecutor(3) as pool:
        patient = [pool.submit(monitor.shutdown, "m") for _ in range(2)]
        under_way = monitor._services.shutdown_coordinator._shutdowns

        def joined() -> bool:  # the thread that runs the shutdown does not wait for its result
            return "m" in under_way and bool(waiters(under_way["m"].result))

        eventually(joined)
        assert not any(each.done() for each in patient)
        pool.submit(monitor.shutdown, "m", True).result(60)
        assert [each.result(60) for each in patient] == [None, None]
    assert finished.outcomes == [(backend.pid, "stopped")]


def test_all_replicas_are_stopped(monitor: Monitor, spawner: Spawner) -> None:
    """A shutdown stops every backend of the model, and no other model's."""
    replicas = [spawner.sleeper() for _ in range(3)]
    other = spawner.sleeper()
    for port, process in enumerate(replicas, 1):
        register(monitor, process.pid, address=f"127.0.0.1:{port}")
    register(monitor, other.pid, "other", "127.0.0.1:9")
    monitor.shutdown("m")
    assert not any(is_running(process.pid) for process in replicas)
    assert [backend.pid for backend in monitor.backends()] == [other.pid]


def test_all_replicas_are_stopped_where_no_thread_can_be_started(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending a model is what frees threads, so it needs none: the backends are stopped in turn."""
    monitor = make_monitor()
    replicas = [spawner.sleeper() for _ in range(3)]
    for port, process in enumerate(replicas, 1):
        register(monitor, process.pid, address=f"127.0.0.1:{port}")
    with monkeypatch.context() as patch:
        refuse_thread(patch)
        monitor.shutdown("m")
    assert not any(is_running(process.pid) for process in replicas)
    assert not monitor.backends()


def test_shutdown_distinguishes_unusable_names_from_models_not_loaded(monitor: Monitor) -> None:
    """Unusable names and models that are not loaded give different errors."""
    with pytest.raises(ModelNotLoaded):
        monitor.shutdown("m")
    with pytest.raises(InvalidRequest):
        monitor.shutdown("")


class Guard:
    """A plugin whose `monitor_before_shutdown` calls a given function."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        self.behave = behave

    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> Any:
        return self.behave()


class NoMessage(Exception):
    def __repr__(self) -> str:
        raise KeyError


def fail_with_an_unusable_repr() -> None:
    raise NoMessage


@pytest.mark.parametrize(
    ("behave", "reason", "forced"),
    [
        (lambda: "it is prod", "it is prod", False),
        (lambda: "caf\udce9", "caf\\udce9", False),
        (fail, "the guard's database is away", True),
        (fail_with_an_unusable_repr, "its hook failed: NoMessage", True),
        (overrun, "its hook failed: it was not back within 0.5 s", True),
    ],
)
def test_hook_refuses_a_shutdown(
    behave: Callable[[], Any],
    reason: str,
    forced: bool,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
) -> None:
    """A reason, an error and an overrun refuse with 409; force overrules only the last two."""
    finished = Finished()
    monitor = make_monitor([finished], hook_timeout_seconds=0.5)
    monitor.plugin_manager.register(Guard(behave), "guard")
    process = spawner.sleeper()
    register(monitor, process.pid)
    answer = Client(monitor.url).shutdown("m")
    assert answer.status == 409
    assert answer.json["error"]["type"] == "shutdown_refused"
    assert "'guard'" in answer.json["error"]["message"]
    assert reason in answer.json["error"]["message"]
    assert is_running(process.pid)
    eventually(lambda: finished.outcomes == [(process.pid, "refused")])
    if forced:
        monitor.shutdown("m", force=True)
        assert not is_running(process.pid)
    else:
        with pytest.raises(ShutdownRefused):
            monitor.shutdown("m", force=True)


def test_wrong_type_from_a_hook_refuses_nothing(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that is neither a string nor None is logged, and refuses nothing."""
    monitor = make_monitor([Guard(lambda: 42)])
    register(monitor, spawner.sleeper().pid)
    monitor.shutdown("m")
    assert "monitor_before_shutdown returned int" in caplog.text


def test_respawn_is_reported(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """If the host starts the model again, the answer is a 500 that names the hook to implement."""
    finished = Finished()
    started: list[subprocess.Popen[str]] = []

    class Restarting:
        @hookimpl
        def monitor_started(self, monitor: Monitor) -> None:
            self.monitor = monitor

        @hookimpl
        def monitor_backend_gone(self, backend: Backend, exit: object) -> None:
            if not started:
                started.append(spawner.sleeper())
                register(self.monitor, started[-1].pid, backend.model)

    monitor = make_monitor([finished, Restarting()], respawn_watch_seconds=30)
    first = spawner.sleeper()
    register(monitor, first.pid)
    answer = Client(monitor.url).shutdown("m")
    assert answer.status == 500
    message = answer.json["error"]["message"]
    assert f"started it again (PID {started[0].pid})" in message
    assert "monitor_stop_backend" in message
    assert not is_running(first.pid)
    assert is_running(started[0].pid)
    assert finished.outcomes == [(first.pid, "respawned")]


def test_respawn_that_has_already_crashed_is_reported(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A respawned process counts, although it ends before the monitor checks."""
    started: list[int] = []

    class CrashLoop:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> None:
            process = spawner.sleeper()
            started.append(process.pid)
            register(monitor, process.pid, backend.model, "127.0.0.1:2")
            process.kill()
            code = process.wait()
            monitor.hook.monitor_backend_exited(
                model=backend.model, pid=process.pid, exit_code=code
            )

    monitor = make_monitor([CrashLoop()], respawn_watch_seconds=30)
    register(monitor, spawner.sleeper().pid)
    with pytest.raises(ShutdownFailed, match="started it again") as raised:
        monitor.shutdown("m")
    assert f"(PID {started[0]})" in str(raised.value)
    assert raised.value.pids == ()


def test_backend_that_crashes_during_the_hooks_leaves_no_child(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The tree was read before the hooks, and all its processes are stopped."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait", start_new_session=False)
    assert process.stdout
    child = int(process.stdout.readline())

    class Crash:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> None:
            process.kill()
            process.wait()

    monitor = make_monitor([Crash()], respawn_watch_seconds=0)
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert not is_running(child)


def test_backends_of_a_model_share_the_drain_timeout(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All backends share the drain timeout, even if few are drained at once."""
    monkeypatch.setattr(shutdown, "_MAX_CONCURRENT_STOPS", 1)
    busy = StaysBusy()
    monitor = make_monitor([busy], drain_timeout_seconds=3.0, sweep_interval_seconds=0)
    for port in (1, 2, 3):
        register(monitor, spawner.sleeper().pid, address=f"127.0.0.1:{port}")
    monitor.shutdown("m")
    assert len({backend.pid for backend in busy.calls}) == 1


def test_client_that_disconnects_does_not_abort_a_stop(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The stop is completed after the client has disconnected."""
    monitor = make_monitor(stop_timeout_seconds=1)
    backend = spawner.backend("--ignore-sigterm")
    register(monitor, backend.pid, address=backend.address)
    client = Client(monitor.url)
    body = b'{"model": "m"}'
    with socket.create_connection((client.host, client.port)) as connection:
        connection.sendall(
            b"POST /backend/shutdown HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
    eventually(lambda: not is_running(backend.pid))
    eventually(lambda: not monitor.backends())
