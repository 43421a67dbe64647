"""Every way in which the exit of a backend is noticed and recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor_plugin import (
    InvalidBackend,
    ModelNotLoaded,
    Monitor,
)
from monitor_plugin.backends import exits, registry
from monitor_plugin.domain.models import MemberEnd
from monitor_plugin.processes import usage
from monitor_plugin.processes.members import Members
from monitor_plugin.processes.process import ProcessGone, keeps_exit_codes

from ..support import Client, Spawner, descriptors, eventually, is_running, logged, register
from .conftest import Recorder


@pytest.mark.parametrize(
    ("command", "number", "cause", "code"),
    [
        (["sh", "-c", "read x; exit 7"], None, "exited", 7),
        (["sleep", "1000"], signal.SIGKILL, "killed", None),
        (["sleep", "1000"], signal.SIGTERM, "killed", None),
    ],
)
def test_exit_is_noticed_without_a_report(
    command: list[str],
    number: int | None,
    cause: str,
    code: int | None,
    monitor: Monitor,
    recorder: Recorder,
    spawner: Spawner,
) -> None:
    """An exit is reported once, with its code or signal, before the host reaps or reports it."""
    process = spawner.process(*command, stdin=subprocess.PIPE)
    register(monitor, process.pid)
    if number:
        process.send_signal(number)
    else:
        assert process.stdin
        process.stdin.close()
    eventually(lambda: recorder.gone)
    (backend, exit) = recorder.gone[0]
    assert (backend.pid, exit.cause, exit.exit_code, exit.signal) == (
        *(process.pid, cause, code),
        number,
    )
    assert process.wait() == (code if number is None else -number)
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=process.returncode)
    assert len(recorder.gone) == 1
    ended = f"process {process.pid} " + (
        f"exited with code {code}"
        if number is None
        else f"was killed by {signal.Signals(number).name}"
    )
    with pytest.raises(ModelNotLoaded, match=ended):
        monitor.read("m")


def test_reported_exit_code_completes_the_exit(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """If the host reaps the process first and reports its exit code, that code is used."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    process.kill()
    process.wait()
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=-9)
    with pytest.raises(ModelNotLoaded, match="SIGKILL"):
        monitor.read("m")
    eventually(lambda: len(recorder.gone) == 1)


# Takes 60 MiB, gives it back, and ends after a line.
HAD_MEMORY = """
import os, sys
block = bytearray(os.urandom(4096)) * (60 * 256)
del block
print("had", flush=True)
sys.stdin.readline()
sys.exit(7)
"""


@pytest.mark.parametrize("noticed_by", ["watcher", "reading", "host", "watcher without code"])
def test_exit_has_the_last_known_peak(
    noticed_by: str,
    monitor: Monitor,
    recorder: Recorder,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any thread may notice the end. A code that the host reports later changes no peak."""
    process = spawner.python(HAD_MEMORY, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "had\n"
    register(monitor, process.pid)
    (record,) = monitor._services.registry.records()
    eventually(lambda: record.tree_memory)
    if noticed_by == "watcher without code":
        monkeypatch.setattr(record.process, "exit_code", lambda: None)
    elif noticed_by != "watcher":
        monitor._services.exit_recorder.watcher.unwatch(record.process)
    process.stdin.close()
    process.wait()
    if noticed_by == "reading":
        with pytest.raises(ModelNotLoaded):
            monitor.read("m")
    if noticed_by == "host":
        monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=7)
    eventually(lambda: recorder.gone)
    ((_, exit),) = recorder.gone
    assert exit.peak_rss is not None
    assert 60 * 1024**2 < exit.peak_rss < 120 * 1024**2
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=7)
    client = Client(monitor.url)
    (ended,) = client.request("GET", "/backends").json["ended"]
    assert (ended["exit_code"], ended["peak_rss"]) == (7, exit.peak_rss)
    events = client.request("GET", "/events?after=0").json["events"]
    assert [each["peak_rss"] for each in events if each["type"] == "ended"] == [exit.peak_rss]


def test_exit_of_a_backend_that_was_never_read_has_no_peak(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """An unknown figure is None, not 0."""
    monitor._services.memory_reader.close()
    process = spawner.sleeper()
    register(monitor, process.pid)
    (observation,) = monitor.sweep()
    assert observation.tree
    assert (observation.tree.peak_rss, observation.tree.pss) == (None, None)
    assert observation.process
    assert observation.process.peak_rss is None
    process.kill()
    eventually(lambda: recorder.gone)
    assert recorder.gone[0][1].peak_rss is None


def test_exit_has_the_peak_that_a_sweep_saw(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A sweep may see more memory than the last reading of the tree did."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    (record,) = monitor._services.registry.records()
    memory = eventually(lambda: record.tree_memory)
    monitor._services.memory_reader.close()
    assert memory
    record.tree_memory = memory._replace(peak_rss=1, root_peak_rss=1)
    (observation,) = monitor.sweep()
    assert observation.tree
    assert observation.process
    rss = observation.tree.rss
    assert rss
    assert (observation.tree.peak_rss, observation.process.peak_rss) == (rss, rss)
    process.kill()
    eventually(lambda: recorder.gone)
    assert (recorder.gone[0][1].peak_rss or 0) >= rss


def test_report_about_another_backend_changes_nothing(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """Reports about an unknown process, a running one or another model are ignored."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=0)
    monitor.hook.monitor_backend_exited(model="x", pid=process.pid, exit_code=0)
    monitor.hook.monitor_backend_exited(model="m", pid=99999999, exit_code=None)
    for bad in ({"pid": "1"}, {"exit_code": "0"}, {"exit_code": True}, {"model": None}):
        arguments = {"model": "m", "pid": process.pid, "exit_code": 0, **bad}
        with pytest.raises(InvalidBackend):
            monitor.hook.monitor_backend_exited(**arguments)
    assert len(monitor.backends()) == 1
    assert recorder.gone == []


def test_ended_backend_is_not_read_at_its_address(monitor: Monitor, spawner: Spawner) -> None:
    """A backend whose process has ended is not loaded, even if another serves its address."""
    backend = spawner.backend_served_here()
    backend.register(monitor, "m")
    assert monitor.read("m").source == "grpc"
    backend.process.kill()
    with pytest.raises(ModelNotLoaded):
        eventually(lambda: monitor.read("m") is None)


def test_exits_are_noticed_by_polling_if_descriptors_are_few(spawner: Spawner) -> None:
    """With few descriptors, watching uses at most half of them, and polls the other processes."""
    code = """
import resource, subprocess, sys, time, os
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from monitor_plugin import Monitor, Settings, hookimpl
gone = []
class Plugin:
    @hookimpl
    def monitor_backend_gone(self, backend, exit): gone.append(backend.pid)
with Monitor(Settings(listen=None), [Plugin()]) as monitor:
    started = []
    for n in range(100):
        started.append(subprocess.Popen(["sleep", "1000"]))
        monitor.hook.monitor_backend_spawned(
            model=str(n), pid=started[-1].pid, address=f"unix:/{n}"
        )
    print(len(os.listdir("/proc/self/fd")), flush=True)
    for each in started:
        each.kill()
    for each in started:
        each.wait()
    deadline = time.monotonic() + 60
    while len(gone) < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(len(gone), len(set(gone)), resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    process = spawner.python(code)
    output, _ = process.communicate(timeout=90)
    descriptors, line = output.splitlines()
    assert int(descriptors) < 50
    assert line == "100 100 (64, 64)"


def test_exits_are_noticed_if_the_host_uses_all_descriptors(spawner: Spawner) -> None:
    """Without a free descriptor exits are noticed, nothing false is reported; later all works."""
    code = """
import os, resource, subprocess, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from monitor_plugin import Monitor, MonitorError, Settings, hookimpl
gone = []
class Plugin:
    @hookimpl
    def monitor_backend_gone(self, backend, exit): gone.append(backend.pid)
def noticed(process):
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while process.pid not in gone and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.pid in gone
def fault(call, *arguments):
    try:
        call(*arguments)
    except MonitorError as error:
        return type(error).__name__
with Monitor(Settings(listen=None, respawn_watch_seconds=0), [Plugin()]) as monitor:
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(14)]
    register = monitor.hook.monitor_backend_spawned
    for n, each in enumerate(started[:12]):
        register(model=str(n), pid=each.pid, address=f"unix:/{n}")
    for model in ("1", "10"):
        monitor.read(model)  # gRPC aborts if no descriptor is free at its first use
    held = []
    def use_up():  # again before each step, as channels that are closed give some back
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
    use_up()
    print(noticed(started[11]), noticed(started[0]))  # one that is polled, one that is not
    for n in (1, 10):
        use_up()
        print(fault(monitor.read, str(n)) in (None, "BackendUnreadable"))
        use_up()
        said = fault(monitor.shutdown, str(n))
        print(said == ("ShutdownFailed" if started[n].poll() is None else None))
    use_up()
    print(fault(lambda: register(model="late", pid=started[12].pid, address="unix:/late")))
    for each in held:
        os.close(each)
    print(noticed(started[9]), noticed(started[2]))
    for model in ("3", "8"):
        print(fault(monitor.read, model), fault(monitor.shutdown, model))
    for each in started:
        each.kill()
"""
    process = spawner.python(code, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=100)
    assert output.splitlines() == [
        "True True",
        *["True"] * 4,
        "InvalidBackend",
        "True True",
        "None None",
        "None None",
    ], errors


def test_reported_exit_code_does_not_replace_the_observed_one(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """An exit code that the monitor read itself is not replaced by a reported one."""
    for code, words in (("kill -9 $$", "was killed by SIGKILL"), ("exit 3", "exited with code 3")):
        process = spawner.process("sh", "-c", f"read line; {code}", stdin=subprocess.PIPE)
        register(monitor, process.pid)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        eventually(lambda: not monitor.backends())
        process.communicate()  # only now: an older kernel has no exit code of a reaped process
        for said in (0, -15, None):
            monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=said)
        with pytest.raises(ModelNotLoaded, match=f"its process {process.pid} {words}"):
            monitor.read("m")


def test_exit_is_noticed_by_a_reading(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A reading checks the process itself, and notices an exit that the watcher missed."""
    process, stranger = spawner.sleeper(), spawner.backend()
    register(monitor, process.pid, address=stranger.address)
    (record,) = monitor._services.registry.records()
    monitor._services.exit_recorder.watcher.unwatch(record.process)
    process.kill()
    eventually(lambda: not is_running(process.pid))
    assert len(monitor.backends()) == 1
    with pytest.raises(ModelNotLoaded, match="SIGKILL"):
        monitor.read("m")
    eventually(lambda: [backend.pid for backend, _ in recorder.gone] == [process.pid])


def test_late_request_leaves_no_connection(monitor: Monitor, spawner: Spawner) -> None:
    """A reading or a `Free` after the exit of a backend keeps no channel to its address."""
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    (record,) = monitor._services.registry.records("m")
    backend.process.kill()
    eventually(lambda: record.process.pidfd is None)  # the pidfd was closed
    connections = monitor._services.status_client._connections
    with pytest.raises(ProcessGone):
        monitor._services.backend_reader.status(record)
    assert connections == {}
    monitor._services.status_client.free(record.backend)
    assert connections
    monitor._services.exit_recorder.record_exit(record)
    assert connections == {}


def test_exit_is_recorded_although_an_error_came_first(
    monitor: Monitor,
    recorder: Recorder,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error delays neither the exits of other backends, nor that exit for good."""
    for number in range(2):
        register(monitor, spawner.sleeper().pid, f"m{number}", f"127.0.0.1:{number + 1}")
    first, second = monitor._services.registry.records()
    exit_code, may_succeed = first.process.exit_code, threading.Event()

    def fail_or_read() -> int | None:
        if not may_succeed.is_set():
            raise psutil.AccessDenied(first.backend.pid)
        return exit_code()

    monkeypatch.setattr(first.process, "exit_code", fail_or_read)
    for record in (first, second):
        record.process.send_signal(signal.SIGKILL)
    eventually(lambda: [each.model for each, _ in recorder.gone] == ["m1"])
    eventually(lambda: logged(caplog))
    may_succeed.set()
    eventually(lambda: [each.model for each, _ in recorder.gone] == ["m1", "m0"])
    assert f"the exit of process {first.backend.pid} could not be handled" in logged(caplog)
    assert recorder.gone[1][1].signal == signal.SIGKILL


def test_baselines_are_recorded_also_if_that_of_another_backend_fails(
    monitor: Monitor,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error is logged. The CPU percentages of the other backends and of trees need theirs."""
    for number in range(2):
        register(monitor, spawner.sleeper().pid, f"m{number}", f"127.0.0.1:{number + 1}")
    services = monitor._services
    first, second = services.registry.records()

    def fail() -> None:
        raise ValueError("no control group")

    monkeypatch.setattr(first.oom, "update", fail)
    recorded = second.sampler._baselines
    eventually(lambda: second.sampler._baselines != recorded)
    eventually(lambda: services.sweeper._usage_reader._baselines)
    expected = f"the CPU baseline of process {first.backend.pid} could not be recorded"
    assert expected in logged(caplog)


@pytest.fixture
def quick(make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """Makes a monitor that looks for the ends of members every 0.1 s."""
    monkeypatch.setattr(exits, "BASELINE_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(usage, "_BASELINE_SNAPSHOT_MAX_AGE_SECONDS", 0.05)
    return make_monitor(sweep_interval_seconds=0)


def events_of(monitor: Monitor, type: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = Client(monitor.url).request("GET", "/events").json["events"]
    return [event for event in events if event["type"] == type]


def test_end_of_a_member_is_an_event_and_a_log_line(
    quick: Monitor, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """The registered process lives on; the same end is reported once."""
    caplog.set_level("INFO", "monitor_plugin.logs")
    process = spawner.with_zombie()
    zombie, other = psutil.Process(process.pid).children()
    register(quick, process.pid)
    (event,) = eventually(lambda: events_of(quick, "member_ended"))
    assert (event["model"], event["pid"]) == ("m", process.pid)
    assert event["member"] == {"pid": zombie.pid, "name": "sleep"}
    assert (event["signal"], event["signal_name"], event["exit_code"]) == (9, "SIGKILL", None)
    assert event["is_zombie"]
    description = "was killed by SIGKILL, and its parent has not waited for it"
    assert event["description"] == description
    line = (
        f"model 'm' (process {process.pid}) has lost process {zombie.pid} ('sleep'), "
        f"which {description}"
    )
    eventually(lambda: line in logged(caplog))
    other.terminate()
    eventually(lambda: len(events_of(quick, "member_ended")) > 1)
    first, second = events_of(quick, "member_ended")
    assert (first, second["member"]["pid"], second["signal"]) == (event, other.pid, 15)


@pytest.mark.skipif(not keeps_exit_codes(), reason="needs Linux 6.15")
def test_cause_is_known_if_the_parent_of_a_member_has_waited_for_it(
    quick: Monitor, spawner: Spawner
) -> None:
    """Soon after the registration, and at any age of the member."""
    process = spawner.process("sh", "-c", "sleep 1000; sleep 1000", stderr=subprocess.DEVNULL)
    (child,) = eventually(psutil.Process(process.pid).children)
    register(quick, process.pid)
    eventually(lambda: quick._services.member_pidfds._pidfds)
    child.kill()
    (event,) = eventually(lambda: events_of(quick, "member_ended"))
    assert (event["member"]["pid"], event["signal"], event["is_zombie"]) == (child.pid, 9, False)


# Starts a child. On SIGTERM it kills the child, and ends a second later.
ENDS_AFTER_ITS_CHILD = """
import signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
def end(*_):
    child.kill()
    time.sleep(1)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["shutdown", "exit"])
def test_members_that_end_with_their_backend_are_no_events(
    how: str, quick: Monitor, spawner: Spawner
) -> None:
    """They are part of the shutdown, or of the exit."""
    process = spawner.python(ENDS_AFTER_ITS_CHILD)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(quick, process.pid)
    observed = quick._services.exit_recorder._member_ends._backends
    eventually(lambda: [each for each in observed if len(each.identities()) == 2])
    threading.Thread(target=process.wait, daemon=True).start()
    if how == "shutdown":
        quick.shutdown("m")
    else:
        os.killpg(process.pid, signal.SIGKILL)
    eventually(lambda: events_of(quick, "ended"))
    eventually(lambda: not observed)  # so no end is reported later
    assert not events_of(quick, "member_ended")


def test_backend_that_forks_for_each_request_reports_no_ends(
    quick: Monitor, spawner: Spawner
) -> None:
    """Nor does a shell that starts one short program after another."""
    forks = (
        "import os, time\nwhile True:\n"
        "    if not os.fork(): os._exit(0)\n"
        "    os.wait()\n"
        "    time.sleep(0.01)"
    )
    register(quick, spawner.python(forks).pid, "forks", "127.0.0.1:1")
    script = "while :; do sleep 0.1; done"
    register(quick, spawner.process("sh", "-c", script).pid, "script", "127.0.0.1:2")
    zombie = spawner.with_zombie()
    register(quick, zombie.pid, "m", "127.0.0.1:3")
    (event,) = eventually(lambda: events_of(quick, "member_ended"))
    assert event["model"] == "m"
    looks = []
    finder = quick._services.exit_recorder._member_ends
    look = finder.find

    def count(members: Members, is_stopping: bool) -> list[MemberEnd]:
        looks.append(members)
        return look(members, is_stopping)

    finder.find = count  # type: ignore[method-assign]
    eventually(lambda: len(looks) > 30)
    assert len(events_of(quick, "member_ended")) == 1


def test_output_of_dropped_exits_is_closed(
    monitor: Monitor, spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays open while the exit is listed, or until the monitor is closed."""
    monkeypatch.setattr(registry, "MAX_EXITS", 2)
    last_exits = monitor._services.registry.last_exits
    open_before = descriptors()
    for count in (1, 2, 3, 4):
        with (tmp_path / str(count)).open("w") as file:
            process = spawner.process("sleep", "1000", stderr=file)
        register(monitor, process.pid, address=f"unix:/{count}")
        process.kill()
        process.wait()
        eventually(lambda: process.pid in [each.backend.pid for each in last_exits()])  # noqa: B023

    def open_files() -> set[str]:
        found = (target for _, target in descriptors() - open_before)
        return {Path(target).name for target in found if target.startswith(str(tmp_path))}

    eventually(lambda: open_files() == {"3", "4"})
    monitor.close()
    assert open_files() == set()


@pytest.mark.parametrize(("age", "looks"), [(0, 10), (60, 2)])
def test_output_files_of_old_backends_are_looked_at_less_often(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch, age: int, looks: int
) -> None:
    """A young backend may still redirect its output."""
    register(monitor, spawner.process("sleep", "1000").pid)
    recorder = monitor._services.exit_recorder
    recorder._baselines.close()
    (record,) = monitor._services.registry.records()
    record.registered_at -= age
    assert record.output
    counted: list[None] = []
    monkeypatch.setattr(record.output, "refresh", lambda: counted.append(None))
    recorder._ticks = 0
    for _ in range(10):
        recorder._record_baselines()
    assert len(counted) == looks
