"""What is known of each end of a backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Backend, BackendExit, Monitor, PostMortem, hookimpl
from monitor_plugin.backends import postmortems, registry
from monitor_plugin.backends.registry import RecentEnds
from monitor_plugin.testing import BackendFactory

from ..support import Spawner, eventually, logged, register, started_since

# Leaves a process behind when it is killed.
LAUNCHER = 'sleep 1000 & echo "$@" >&2; echo; wait'


class Listener:
    """A plugin that records post-mortems, and which backend they are of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.postmortems: list[PostMortem] = []

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.events.append(("gone", backend.pid))

    @hookimpl
    def monitor_backend_postmortem(self, backend: Backend, postmortem: PostMortem) -> None:
        self.events.append(("postmortem", backend.pid))
        self.postmortems.append(postmortem)

    def wait(self, count: int = 1) -> PostMortem:
        """Wait for some post-mortems, and return the last one."""
        eventually(lambda: len(self.postmortems) == count)
        return self.postmortems[-1]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], listener: Listener) -> Monitor:
    return make_monitor(plugins=[listener], sweep_interval_seconds=0.1)


def test_postmortem_has_all_that_is_known(
    monitor: Monitor, listener: Listener, spawner: Spawner, tmp_path: Path
) -> None:
    """The post-mortem follows the exit, comes once, and is stored with the exit."""
    with (tmp_path / "log").open("w") as log:
        backend = spawner.backend(stderr=log)
        log.write("CUDA error: out of memory\n")
    backend.register(monitor, "m")
    (record,) = monitor._services.registry.records()
    eventually(lambda: record.observation and record.observation.tree)
    observation = record.observation
    assert observation
    backend.process.kill()
    postmortem = listener.wait()
    (ended,) = monitor._services.registry.last_exits()
    assert ended.postmortem == postmortem
    assert postmortem.id == ended.id
    assert postmortem.exit == ended.exit
    assert postmortem.exit.cause == "killed"
    assert postmortem.exit.peak_rss
    assert postmortem.uptime_seconds > 0
    assert postmortem.ready_seconds is not None
    assert postmortem.ends_last_hour == 1
    assert postmortem.left_behind == ()
    assert postmortem.last_observation is not None
    assert postmortem.last_observation.backend.pid == backend.pid
    assert postmortem.last_observation.state_name == "ready"
    assert postmortem.last_output
    assert postmortem.last_output.endswith("CUDA error: out of memory")
    assert listener.events == [("gone", backend.pid), ("postmortem", backend.pid)]


def test_postmortem_has_what_was_left_behind(
    monitor: Monitor, listener: Listener, spawner: Spawner, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as log:
        launcher = spawner.process("sh", "-c", LAUNCHER, "sh", "last word", stderr=log)
    assert launcher.stdout
    launcher.stdout.readline()
    register(monitor, launcher.pid)
    launcher.kill()
    postmortem = listener.wait()
    assert [each.name for each in postmortem.left_behind or ()] == ["sleep"]
    assert postmortem.last_output == "last word"
    assert postmortem.last_observation is None or postmortem.last_observation.tree


def test_shutdown_has_a_postmortem(
    monitor: Monitor, listener: Listener, backend: BackendFactory
) -> None:
    backend().register(monitor, "m")
    monitor.shutdown("m")
    postmortem = listener.wait()
    assert (postmortem.exit.cause, postmortem.left_behind) == ("shutdown", ())


def test_exit_code_that_a_host_reports_late_is_in_the_postmortem(
    monitor: Monitor, listener: Listener, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor waits some seconds for it, in which other post-mortems are made."""
    monkeypatch.setattr(postmortems, "_EXIT_CODE_SECONDS", 60.0)
    first, second = spawner.sleeper(), spawner.sleeper()
    register(monitor, first.pid, address="unix:/1")
    register(monitor, second.pid, address="unix:/2")
    record = monitor._services.registry.find(first.pid)
    assert record
    monkeypatch.setattr(record.process, "exit_code", lambda: None)
    for process in (first, second):
        process.kill()
        process.wait()
        eventually(lambda: process.pid not in [each.pid for each in monitor.backends()])  # noqa: B023
    assert listener.wait().exit.cause == "killed"
    monitor.hook.monitor_backend_exited(model="m", pid=first.pid, exit_code=7)
    postmortem = listener.wait(2)
    assert (postmortem.exit.cause, postmortem.exit.exit_code) == ("exited", 7)
    assert postmortem.ends_last_hour == 1


def test_exit_code_that_nobody_reports_stays_unknown(
    monitor: Monitor, listener: Listener, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postmortems, "_EXIT_CODE_SECONDS", 0.5)
    process = spawner.sleeper()
    register(monitor, process.pid)
    (record,) = monitor._services.registry.records()
    monkeypatch.setattr(record.process, "exit_code", lambda: None)
    process.kill()
    process.wait()
    assert listener.wait().exit.cause == "unknown"


def test_ends_of_the_last_hour_are_counted_beyond_the_stored_exits(
    monitor: Monitor, listener: Listener, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_EXITS", 2)
    for count in range(1, 6):
        process = spawner.sleeper()
        register(monitor, process.pid)
        process.kill()
        process.wait()
        assert listener.wait(count).ends_last_hour == count


def test_recent_ends_are_few_and_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ends = RecentEnds()
    assert [ends.add("a"), ends.add("a"), ends.add("b")] == [1, 2, 1]
    now = 3599.0
    assert ends.add("a") == 3
    now = 3601.0
    assert ends.add("a") == 2
    monkeypatch.setattr(registry, "MAX_RECENT_ENDS", 3)
    assert [ends.add(each) for each in "cdea"] == [1, 1, 1, 1]
    assert set(ends._counts) == {"d", "e", "a"}


def test_slow_hook_delays_many_postmortems_by_seconds_only(
    make_monitor: Callable[..., Monitor],
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After 10 s, post-mortems are made without the last output."""
    monkeypatch.setattr(postmortems, "_OUTPUT_SECONDS", 1.0)
    calls = []

    class Slow:
        @hookimpl
        def monitor_read_log(self, model: str, pid: int) -> bytes:
            calls.append(pid)
            threading.Event().wait(0.4)
            return b"last word"

    monitor = make_monitor(plugins=[listener, Slow()])
    processes = [spawner.sleeper() for _ in range(30)]
    for each in processes:
        register(monitor, each.pid, address=f"unix:/{each.pid}")
    for each in processes:
        each.kill()
    listener.wait(30)
    outputs = [each.last_output for each in listener.postmortems]
    assert outputs.count("last word") == len(calls)
    assert 1 <= len(calls) < 30
    assert set(outputs) == {"last word", None}


def test_close_does_not_wait_for_a_hook_that_hangs(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The hook would have a minute."""
    before = threading.enumerate()
    called, released = threading.Event(), threading.Event()

    class Hanging:
        @hookimpl
        def monitor_read_log(self) -> None:
            called.set()
            released.wait(120)

    monitor = make_monitor(plugins=[Hanging()], hook_timeout_seconds=60.0)
    process = spawner.sleeper()
    register(monitor, process.pid)
    process.kill()
    assert called.wait(60)
    began = time.monotonic()
    monitor.close()
    assert time.monotonic() - began < 30
    assert "monitor-postmortems" in started_since(before)
    released.set()
    eventually(lambda: "monitor-postmortems" not in started_since(before))


def test_last_output_is_not_logged(
    monitor: Monitor,
    listener: Listener,
    spawner: Spawner,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No logger has the output, even at the level DEBUG."""
    caplog.set_level("DEBUG")
    with (tmp_path / "log").open("w") as log:
        log.write("a prompt of a user")
        log.flush()
        process = spawner.process("sleep", "1000", stderr=log)
    register(monitor, process.pid)
    process.kill()
    assert listener.wait().last_output == "a prompt of a user"
    eventually(lambda: any("SIGKILL" in line for line in logged(caplog)))
    assert not any("prompt" in line for line in logged(caplog))
