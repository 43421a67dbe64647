"""What is known of each end of a backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Backend, BackendExit, HostExit, Monitor, PostMortem, hookimpl
from monitor_plugin.backends import postmortems, registry
from monitor_plugin.backends.registry import RecentEnds
from monitor_plugin.testing import BackendFactory

from ..support import Client, Spawner, eventually, logged, register, started_since

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


class Explaining:
    """A host that explains the ends of its backends by their PIDs."""

    def __init__(self) -> None:
        self.exits: dict[int, HostExit] = {}
        self.asked: list[tuple[int, float]] = []

    @hookimpl
    def monitor_explain_exit(self, backend: Backend) -> HostExit | None:
        self.asked.append((backend.pid, time.monotonic()))
        return self.exits.get(backend.pid)


OOM_KILL = HostExit(result="oom-kill", signal=9, manager="systemd")


def test_exit_is_completed_by_its_host(
    make_monitor: Callable[..., Monitor],
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So are lists, `/ended/ID` and metrics; the published event stays as it was."""
    host = Explaining()
    monitor = make_monitor(plugins=[listener, host])
    process = spawner.sleeper()
    register(monitor, process.pid)
    host.exits[process.pid] = OOM_KILL
    (record,) = monitor._services.registry.records()
    monkeypatch.setattr(record.process, "exit_code", lambda: None)
    process.kill()
    process.wait()
    postmortem = listener.wait()
    text = "was killed by the kernel for want of memory (systemd: oom-kill)"
    assert postmortem.host_exit == OOM_KILL
    exit = postmortem.exit
    assert (exit.cause, exit.signal, exit.oom, exit.oom_certain) == ("oom", 9, True, True)
    client = Client(monitor.url)
    (item,) = client.request("GET", "/backends").json["ended"]
    whole = client.request("GET", f"/ended/{postmortem.id}").json
    for each in (item, whole):
        assert (each["cause"], each["signal_name"], each["description"]) == ("oom", "SIGKILL", text)
        assert each["host_exit"]["result"] == "oom-kill"
    events = client.request("GET", "/events").json["events"]
    (event,) = [each for each in events if each["type"] == "ended"]
    assert event["cause"] == "unknown"
    counts = monitor._services.model_counter.counts()["m"]
    assert {cause: n for cause, n in counts.exits.items() if n} == {"oom": 1}


def test_host_is_asked_a_second_after_the_end(
    make_monitor: Callable[..., Monitor], listener: Listener, spawner: Spawner
) -> None:
    """By then it has learnt of the end itself; it is asked once."""
    host = Explaining()
    monitor = make_monitor(plugins=[listener, host])
    process = spawner.sleeper()
    register(monitor, process.pid)
    killed_at = time.monotonic()
    process.kill()
    assert listener.wait().host_exit is None
    ((pid, asked_at),) = host.asked
    assert pid == process.pid
    assert asked_at - killed_at >= 1.0
    assert monitor._services.model_counter.counts()["m"].exits["killed"] == 1


def test_backend_that_is_restarted_at_once_does_not_get_the_result_of_the_last_one(
    make_monitor: Callable[..., Monitor],
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postmortems, "_HOST_SECONDS", 0.2)
    host = Explaining()
    monitor = make_monitor(plugins=[listener, host])
    old, new = spawner.sleeper(), spawner.sleeper()
    register(monitor, old.pid)
    host.exits[old.pid] = OOM_KILL
    old.kill()
    eventually(lambda: not monitor.backends())
    register(monitor, new.pid)
    assert listener.wait().exit.cause == "oom"
    assert [each.pid for each in monitor.backends()] == [new.pid]
    new.terminate()
    postmortem = listener.wait(2)
    assert (postmortem.exit.cause, postmortem.host_exit) == ("killed", None)
    assert [pid for pid, _ in host.asked] == [old.pid, new.pid]


def test_code_that_the_host_reports_after_its_result_is_added(
    make_monitor: Callable[..., Monitor],
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result still counts, also if it came without a code or a signal."""
    monkeypatch.setattr(postmortems, "_HOST_SECONDS", 0.2)
    monkeypatch.setattr(postmortems, "_EXIT_CODE_SECONDS", 60.0)
    host = Explaining()
    monitor = make_monitor(plugins=[listener, host])
    process = spawner.sleeper()
    register(monitor, process.pid)
    host.exits[process.pid] = HostExit(result="oom-kill")
    (record,) = monitor._services.registry.records()
    monkeypatch.setattr(record.process, "exit_code", lambda: None)
    process.kill()
    process.wait()
    registry = monitor._services.registry
    eventually(lambda: [each.exit.cause for each in registry.last_exits()] == ["oom"])
    assert not listener.postmortems
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=-9)
    exit = listener.wait().exit
    assert (exit.cause, exit.signal, exit.oom_certain) == ("oom", 9, True)


def test_host_that_is_late_or_raises_delays_other_postmortems_by_its_time_limit_at_most(
    make_monitor: Callable[..., Monitor],
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hook that hangs is not called again; the next implementation is."""
    monkeypatch.setattr(postmortems, "_HOST_SECONDS", 0.2)
    released, hung = threading.Event(), []

    class Hanging:
        @hookimpl(tryfirst=True)
        def monitor_explain_exit(self, backend: Backend) -> None:
            hung.append(backend.pid)
            released.wait(120)

    class Raising:
        @hookimpl(trylast=True)
        def monitor_explain_exit(self) -> None:
            raise RuntimeError("no bus")

    host = Explaining()
    plugins = [listener, Hanging(), host, Raising()]
    monitor = make_monitor(plugins=plugins, hook_timeout_seconds=0.5)
    processes = [spawner.sleeper() for _ in range(20)]
    for each in processes:
        host.exits[each.pid] = HostExit(result="signal")
        register(monitor, each.pid, address=f"unix:/{each.pid}")
    del host.exits[processes[0].pid]
    for each in processes:
        each.kill()
    listener.wait(20)
    released.set()
    assert len(hung) == 1
    results = [each.host_exit.result for each in listener.postmortems if each.host_exit]
    assert results == ["signal"] * 19


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
    monkeypatch.setattr(postmortems, "_HOOK_SECONDS", 1.0)
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
