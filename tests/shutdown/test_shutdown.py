"""Shutdowns of real processes: refused, drained, freed, stopped, verified, watched."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from monitor_plugin import (
    Backend,
    InvalidRequest,
    ModelNotLoaded,
    Monitor,
    ShutdownFailed,
    ShutdownRefused,
    State,
    Status,
    hookimpl,
)
from monitor_plugin.processes import process_tree
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_table import ProcessSnapshot, take_snapshot
from monitor_plugin.rpc.protocol import SERVICE
from monitor_plugin.shutdown import coordinator as shutdown

from ..support import Client, Spawner, eventually, is_running, register, suspend

STUBBORN_WORKERS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        if os.fork():
            time.sleep(1000)
        time.sleep(1000)
print("ready", flush=True)
time.sleep(1000)
"""


class Finished:
    """A plugin that records the outcomes of shutdowns."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str]] = []

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append((backend.pid, outcome))


class StaysBusy:
    """A plugin that reports every backend as busy, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[Backend] = []
        self.timeouts: list[float] = []

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        self.calls.append(backend)
        self.timeouts.append(timeout_seconds)
        return Status(State.BUSY)


def waiters(future: Future[Any]) -> list[object]:
    found: list[object] = future._condition._waiters  # type: ignore[attr-defined]
    return found


def tree_of(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_process_tree_that_ignores_sigterm_is_killed(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """After the stop timeout every descendant is killed, before the shutdown returns."""
    finished = Finished()
    monitor = make_monitor(plugins=[finished], stop_timeout_seconds=3)
    process = spawner.python(STUBBORN_WORKERS)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    eventually(lambda: len(tree_of(process.pid)) == 7)
    pids = tree_of(process.pid)
    bystander = spawner.sleeper()
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert [pid for pid in pids if is_running(pid)] == []
    assert is_running(bystander.pid)
    assert finished.outcomes == [(process.pid, "stopped")]
    assert process.wait() == -signal.SIGKILL


def test_orphans_of_the_session_are_stopped(monitor: Monitor, spawner: Spawner) -> None:
    """Workers whose parent has ended are found by the session that the backend leads."""
    code = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
"""
    process = spawner.python(code)
    assert process.stdout
    orphan = int(process.stdout.readline())
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert not is_running(orphan)


@pytest.mark.slow
def test_workers_forked_at_the_end_are_stopped(monitor: Monitor, spawner: Spawner) -> None:
    """A backend that forks on SIGTERM leaves no process behind."""
    code = """
import os, signal, sys, time
def end(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the child inherits from its first moment
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())  # `print` may be what was interrupted
        time.sleep(1000)
    time.sleep(0.3)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:  # a handler is not called where its signal comes just before the one long sleep
    time.sleep(0.1)
"""
    process = spawner.python(code)
    assert process.stdout
    process.stdout.readline()
    register(monitor, process.pid)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        late = int(process.stdout.readline())
        stopping.result(60)
    assert not is_running(late)


def test_suspended_backend_is_stopped(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend that hangs under SIGSTOP is stopped like any other."""
    monitor = make_monitor(status_timeout_seconds=1.0)
    backend = spawner.backend()
    register(monitor, backend.pid, address=backend.address)
    suspend(backend.pid)
    monitor.shutdown("m")
    assert not is_running(backend.pid)


def test_zombie_counts_as_ended(monitor: Monitor, spawner: Spawner) -> None:
    """A host that reaps late, or never, does not make a shutdown fail."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert process.returncode is None
    assert os.path.exists(f"/proc/{process.pid}")  # noqa: PTH110
    assert process.wait() == -signal.SIGTERM


def test_busy_backend_is_drained(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """A shutdown waits until a busy backend is ready."""
    monitor = make_monitor()
    started = time.monotonic()
    backend = spawner.backend("--busy-seconds", "2")
    register(monitor, backend.pid, address=backend.address)
    assert monitor.read("m").status is not None
    was_busy = monitor.read("m").status.state == State.BUSY  # type: ignore[union-attr]
    monitor.shutdown("m")
    assert backend.process.wait() == 0
    assert not was_busy or time.monotonic() - started > 2


def test_drain_ends_after_its_timeout_or_by_force(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend that stays busy is stopped after the drain timeout, or immediately with force."""
    monitor = make_monitor(drain_timeout_seconds=0.3)
    backend = spawner.backend("--state", "1")
    register(monitor, backend.pid, address=backend.address)
    monitor.shutdown("m")
    patient = make_monitor(drain_timeout_seconds=3600)
    backend = spawner.backend("--state", "1")
    register(patient, backend.pid, address=backend.address)
    patient.shutdown("m", force=True)
    assert not is_running(backend.pid)


def test_hooks_get_the_remaining_time_of_the_drain(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A status hook gets the remaining time of the drain as its timeout."""
    busy = StaysBusy()
    monitor = make_monitor([busy], drain_timeout_seconds=3.0)
    register(monitor, spawner.sleeper().pid)
    monitor.shutdown("m")
    assert busy.timeouts
    assert max(busy.timeouts) <= 3


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


def fail() -> None:
    raise RuntimeError("the guard's database is away")


class NoMessage(Exception):
    def __repr__(self) -> str:
        raise KeyError


def fail_with_an_unusable_repr() -> None:
    raise NoMessage


def overrun() -> None:
    threading.Event().wait(60)


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


class StopHook:
    """A host whose `monitor_stop_backend` calls a given function."""

    def __init__(self, stop: Callable[[Backend], Any]) -> None:
        self.stop = stop

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> Any:
        return self.stop(backend)


def test_host_stops_a_backend_through_its_hook(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """If a hook returns True, the monitor verifies the exit, and sends no signal."""
    signals = "import os,signal,time,sys\n" + (
        "signal.signal(signal.SIGTERM, lambda *a: os.write(1, b'TERM'))\n"
        "signal.signal(signal.SIGINT, lambda *a: sys.exit(5))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.1)"
    )
    process = spawner.python(signals)
    assert process.stdout
    process.stdout.readline()

    def stop(backend: Backend) -> bool:
        os.kill(backend.pid, signal.SIGINT)
        return True

    monitor = make_monitor([StopHook(stop)], respawn_watch_seconds=3600)
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert process.wait() == 5
    assert process.stdout.read() == ""


# At SIGTERM it starts a child in a session of its own, and prints its PID. It ends once
# standard input is closed.
FORKS_AT_SIGTERM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
if os.fork() == 0:
    os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    signal.sigwait({signal.SIGTERM})
    os._exit(0)
sys.stdin.readline()
"""


@pytest.mark.parametrize("answer", [True, None])
def test_child_that_is_forked_while_the_host_stops_its_parent_is_found(
    answer: bool | None,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is named if the host stops the backend, and stopped if the host leaves it to the monitor.

    When the hook returns, the child is in another session, and its parent has ended.
    """
    process = spawner.python(FORKS_AT_SIGTERM, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    children: list[int] = []
    child_found = threading.Event()
    rescan = process_tree.ProcessTree.rescan

    def record(*arguments: Any) -> list[Process]:
        new = rescan(*arguments)
        if any(member.pid != process.pid for member in new):
            child_found.set()
        return new

    def stop(backend: Backend) -> bool | None:
        process.terminate()
        assert process.stdout
        children.append(int(process.stdout.readline()))
        child_found.wait(60)
        assert process.stdin
        process.stdin.close()
        process.wait(60)
        return answer

    monkeypatch.setattr(process_tree.ProcessTree, "rescan", record)
    monitor = make_monitor([StopHook(stop)], stop_timeout_seconds=0.5, hook_timeout_seconds=100)
    register(monitor, process.pid)
    if answer:
        with pytest.raises(ShutdownFailed, match="nothing was signalled") as raised:
            monitor.shutdown("m")
        assert raised.value.pids == tuple(children)
    else:
        monitor.shutdown("m")
    (child,) = children
    assert is_running(child) == bool(answer)
    if answer:
        os.kill(child, signal.SIGKILL)


def test_host_that_does_not_stop_a_backend_is_reported(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """If the hook returns False, or True and the backend runs, the answer is a 500 with PIDs."""
    process = spawner.sleeper()
    for answer, words in ((True, "nothing was signalled"), (False, "could not stop it")):
        plugin = StopHook(lambda backend, answer=answer: answer)  # type: ignore[misc]
        monitor = make_monitor([plugin], stop_timeout_seconds=0.3)
        register(monitor, process.pid)
        reply = Client(monitor.url).shutdown("m")
        assert reply.status == 500
        assert reply.json["error"]["type"] == "shutdown_failed"
        assert words in reply.json["error"]["message"]
        assert f"PID {process.pid}" in reply.json["error"]["message"]
        assert is_running(process.pid)
        assert len(monitor.backends()) == 1


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_process_that_cannot_be_killed_is_named_and_stays_registered(spawner: Spawner) -> None:
    """A process that the monitor may not signal gives a 500 with its PID, and stays registered."""
    process = spawner.sleeper()
    other = spawner.python(
        "import os, sys\n"
        "from tests.support import Client\n"
        "from monitor_plugin import Monitor, Settings\n"
        "settings = Settings(listen='127.0.0.1:0', stop_timeout_seconds=0.2)\n"
        "with Monitor(settings) as monitor:\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"    process = {{'model': 'm', 'pid': {process.pid}, 'address': '127.0.0.1:1'}}\n"
        "    monitor.hook.monitor_backend_spawned(**process)\n"
        "    answer = Client(monitor.url).shutdown('m')\n"
        "    print(answer.status, answer.json['error']['message'])\n"
        "    print([each.pid for each in monitor.backends()])\n"
    )
    said, errors = other.communicate(timeout=60)
    assert said.startswith("500 "), errors
    assert f"still running: PID {process.pid}\n" in said
    assert said.endswith(f"[{process.pid}]\n")
    assert is_running(process.pid)


@pytest.mark.parametrize("behave", [lambda backend: None, lambda backend: "yes", lambda b: fail()])
def test_hooks_that_do_not_stop_leave_it_to_the_monitor(
    behave: Callable[[Backend], Any], make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """None, a wrong type and an error are ignored, and the monitor stops the tree itself."""
    monitor = make_monitor([StopHook(behave)])
    process = spawner.sleeper()
    register(monitor, process.pid)
    monitor.shutdown("m")
    assert process.wait() == -signal.SIGTERM


def test_stop_hook_that_overruns_is_reported(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The hook may still stop the backend: no signal is sent, and the error names the hook."""
    monitor = make_monitor(stop_timeout_seconds=0.2, hook_timeout_seconds=0.2)
    monitor.plugin_manager.register(StopHook(lambda backend: overrun()), "slow")
    process = spawner.sleeper()
    register(monitor, process.pid)
    with pytest.raises(ShutdownFailed, match=r"'slow', it was not back within 0.4 s") as raised:
        monitor.shutdown("m")
    assert raised.value.pids == (process.pid,)
    assert is_running(process.pid)


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


def test_backend_that_crashes_during_the_drain_leaves_no_child(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A child that is started during the drain is stopped too."""
    code = "read l; sleep 1000 & echo $!; read l; kill -9 $$"
    process = spawner.process(
        *("sh", "-c", code), stdin=subprocess.PIPE, bufsize=1, start_new_session=False
    )
    assert process.stdin
    assert process.stdout
    busy = StaysBusy()
    monitor = make_monitor([busy], drain_timeout_seconds=3600, respawn_watch_seconds=0)
    register(monitor, process.pid)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        eventually(lambda: busy.calls)
        process.stdin.write("\n")
        child = int(process.stdout.readline())
        calls = len(busy.calls)
        eventually(lambda: len(busy.calls) > calls + 10)  # each a tenth of a second apart
        process.stdin.write("\n")
        process.wait()
        stopping.result(60)
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


def test_error_of_a_subclass_from_a_stop_hook_is_reported(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A subclass of the error without a model and a reason is reported too."""

    class Refused(ShutdownFailed):
        def __init__(self, message: str) -> None:
            Exception.__init__(self, message)

    def refuse(backend: Backend) -> None:
        raise Refused("the books are closed")

    monitor = make_monitor()
    monitor.plugin_manager.register(StopHook(refuse), "books")
    register(monitor, spawner.sleeper().pid)
    with pytest.raises(ShutdownFailed, match="'books': the books are closed"):
        monitor.shutdown("m")


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


def test_closing_the_monitor_ends_a_drain_without_a_signal(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The shutdown fails with an error that says so, and stops nothing."""
    monitor = make_monitor(drain_timeout_seconds=3600)
    backend = spawner.backend("--state", "1")
    register(monitor, backend.pid, address=backend.address)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(Client(monitor.url).shutdown, "m")
        eventually(lambda: any(t.name == "monitor-worker" for t in threading.enumerate()))
        monitor.close()
        answer = stopping.result(60)
    assert answer.status == 500
    assert "closed while it waited; nothing was signalled" in answer.json["error"]["message"]
    assert is_running(backend.pid)


def test_closing_the_monitor_ends_the_wait_for_an_exit(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Closed between SIGTERM and SIGKILL, the monitor reports the running processes."""
    monitor = make_monitor(stop_timeout_seconds=3600)
    code = (
        "import os,signal,time\n"  # `print` may be what a signal interrupts
        "signal.signal(signal.SIGTERM, lambda *a: os.write(1, b'T\\n'))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.1)"
    )
    process = spawner.process(sys.executable, "-c", code)
    assert process.stdout
    process.stdout.readline()
    register(monitor, process.pid)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        assert process.stdout.readline() == "T\n"
        monitor.close()
        with pytest.raises(ShutdownFailed, match="closed meanwhile") as raised:
            stopping.result(60)
    assert raised.value.pids == (process.pid,)
    assert "SIGKILL" not in str(raised.value)


@pytest.mark.parametrize("during", ["Free", "a hook"])
def test_closing_the_monitor_during_free_or_a_hook_sends_no_signal(
    during: str, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """If the monitor is closed during `Free` or the stop hook, it sends no signal."""
    asked, answer = threading.Event(), threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        answer.wait(60)

    def stop(backend: Backend) -> None:
        hooked.append(backend)
        if during == "a hook":
            ask()

    hooked: list[Backend] = []
    handler = grpc.unary_unary_rpc_method_handler(ask, None, lambda answer: b"")
    server = grpc.server(ThreadPoolExecutor(1))
    if during == "Free":
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Free": handler}),)
        )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    process = spawner.sleeper()
    monitor = make_monitor([StopHook(stop)], status_timeout_seconds=60)
    register(monitor, process.pid, address=address)
    with ThreadPoolExecutor(2) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        assert asked.wait(30)
        closing = pool.submit(monitor.close)
        eventually(lambda: monitor._services.shutdown_coordinator._stopper.closing.is_set())
        answer.set()
        with pytest.raises(ShutdownFailed, match="closed while it waited; nothing was signalled"):
            stopping.result(60)
        closing.result(60)
    server.stop(None)
    assert is_running(process.pid)
    assert len(hooked) == (during == "a hook")


def test_busy_backend_that_stops_answering_is_drained(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that was BUSY and no longer answers is drained; force ends that."""
    monitor = make_monitor(drain_timeout_seconds=3600, status_timeout_seconds=0.1)
    backend = spawner.backend("--state", "1")
    register(monitor, backend.pid, address=backend.address)
    eventually(lambda: monitor.read("m").status)
    suspend(backend.pid)
    eventually(lambda: monitor.read("m").rpc_error == "DEADLINE_EXCEEDED")
    asked: list[object] = []
    ask = monitor._services.backend_reader.status

    def count(*arguments: Any) -> Any:
        asked.append(arguments)
        return ask(*arguments)

    monkeypatch.setattr(monitor._services.backend_reader, "status", count)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        eventually(lambda: len(asked) > 3)
        assert not stopping.done()
        monitor.shutdown("m", force=True)
        stopping.result(60)
    assert not is_running(backend.pid)


FORKS_WHEN_ORPHANED = """
import ctypes, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getpid()

def escape(*_):
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(1000)

for _ in range(40):
    if os.fork() == 0:
        signal.signal(signal.SIGUSR1, escape)
        ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG
        while True:
            time.sleep(0.1)
os.write(1, b"ready\\n")
time.sleep(1000)
"""


def test_tree_forks_nothing_while_it_is_killed(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Children that would fork and leave the session after their parent's death cannot do so."""
    monitor = make_monitor(stop_timeout_seconds=3)
    process = spawner.python(FORKS_WHEN_ORPHANED)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(monitor, process.pid)
    monitor.shutdown("m")
    escaped = []
    if select.select([process.stdout], [], [], 0)[0]:
        escaped = os.read(process.stdout.fileno(), 4096).split()
    for pid in escaped:
        os.kill(int(pid), signal.SIGKILL)
    assert escaped == []


FORKS_AND_ENDS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready\\n")
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.002)
"""


def test_chain_of_short_lived_processes_is_killed(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A chain of processes that each live 2 ms ends with the stop of its root."""
    monitor = make_monitor(stop_timeout_seconds=3)
    process = spawner.python(
        f"import os, time\nif os.fork():\n    time.sleep(1000)\n{FORKS_AND_ENDS}"
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(monitor, process.pid)
    monitor.shutdown("m")
    # Each process that still runs keeps the pipe open.
    assert select.select([process.stdout], [], [], 60)[0]
    assert process.stdout.read() == ""


def test_suspended_processes_are_killed_if_the_last_scan_fails(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes under SIGSTOP are killed, although no descriptor is free for the last scan."""
    monitor = make_monitor(stop_timeout_seconds=0.2)
    process = spawner.python(STUBBORN_WORKERS)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(monitor, process.pid)
    members = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    send = process_tree._send
    sent: list[int] = []

    def record_and_send(process: Process, number: int) -> bool:
        sent.append(number)
        return send(process, number)

    def fail_or_take() -> ProcessSnapshot:
        if signal.SIGSTOP in sent:
            raise OSError(errno.EMFILE, "Too many open files")
        return take_snapshot()

    monkeypatch.setattr(process_tree, "_send", record_and_send)
    monkeypatch.setattr(process_tree, "take_snapshot", fail_or_take)
    with pytest.raises(ShutdownFailed, match="Too many open files"):
        monitor.shutdown("m")
    assert psutil.wait_procs(members, timeout=60)[1] == []


def test_suspended_process_handles_sigterm(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A process under SIGSTOP is continued, so that it can handle SIGTERM."""
    monitor = make_monitor(stop_timeout_seconds=20)
    process = spawner.python(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.1)"
    )
    assert process.stdout
    process.stdout.readline()
    register(monitor, process.pid)
    process.send_signal(signal.SIGSTOP)
    monitor.shutdown("m")
    assert process.wait() == 5


def test_exit_after_a_failed_shutdown_is_not_attributed_to_it(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend that outlives its shutdown and is killed later has the cause `killed`."""
    monitor = make_monitor([StopHook(lambda backend: False)])
    process = spawner.sleeper()
    register(monitor, process.pid)
    with pytest.raises(ShutdownFailed):
        monitor.shutdown("m")
    process.kill()
    eventually(lambda: not monitor.backends())
    with pytest.raises(ModelNotLoaded, match="was killed by SIGKILL"):
        monitor.read("m")
