"""The stop of one backend: drained, freed, ended by the host or by signals, and verified.

A PID that is used again is tested in `tests/integration/test_pid_reuse.py`, and the members of a
process tree in `tests/processes/test_process_tree.py`.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import grpc
import psutil
import pytest

from monitor_plugin import (
    Backend,
    ModelNotLoaded,
    Monitor,
    ShutdownFailed,
    State,
    Status,
    hookimpl,
)
from monitor_plugin.backends.registry import EndedBackend
from monitor_plugin.processes import process_tree
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_table import ProcessSnapshot
from monitor_plugin.rpc.protocol import SERVICE
from monitor_plugin.shutdown.stop import Stop, Stopper, describe_signals, format_pids

from ..support import Client, Spawner, eventually, is_running, refuse_thread, register, suspend
from .support import StaysBusy, fail, overrun

pytestmark = pytest.mark.slow


def stopper(monitor: Monitor) -> Stopper:
    return monitor._services.shutdown_coordinator._stopper


def begin_stop(monitor: Monitor, pid: int) -> Stop:
    record = monitor._services.registry.find(pid)
    assert record
    return Stop(record)


def stop_backend(monitor: Monitor, pid: int) -> Stop:
    """Stop a backend as a shutdown does after the drain."""
    stop = begin_stop(monitor, pid)
    with stop.resources:
        stopper(monitor).open(stop)
        stopper(monitor).stop(stop)
    return stop


def last_exit(monitor: Monitor) -> EndedBackend:
    return monitor._services.registry.last_exits()[-1]


class StopHook:
    """A host whose `monitor_stop_backend` calls a given function."""

    def __init__(self, stop: Callable[[Backend], Any]) -> None:
        self.stop = stop

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> Any:
        return self.stop(backend)


def test_backend_that_ends_on_sigterm_is_stopped(monitor: Monitor, spawner: Spawner) -> None:
    """Its exit is recorded as a shutdown. A zombie has ended: the host may reap late or never."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    stop = stop_backend(monitor, process.pid)
    assert (stop.failure, stop.by_host) == (None, False)
    assert monitor.backends() == []
    exit = last_exit(monitor).exit
    assert (exit.cause, exit.signal) == ("shutdown", signal.SIGTERM)
    assert os.path.exists(f"/proc/{process.pid}")  # noqa: PTH110
    assert process.wait() == -signal.SIGTERM


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


def tree_of(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_backend_that_ignores_sigterm_is_killed_with_its_tree(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """After the stop timeout every descendant is killed, before the stop returns."""
    monitor = make_monitor(stop_timeout_seconds=3)
    process = spawner.python(STUBBORN_WORKERS)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    eventually(lambda: len(tree_of(process.pid)) == 7)
    pids = tree_of(process.pid)
    bystander = spawner.sleeper()
    register(monitor, process.pid)
    assert stop_backend(monitor, process.pid).failure is None
    assert [pid for pid in pids if is_running(pid)] == []
    assert is_running(bystander.pid)
    assert process.wait() == -signal.SIGKILL
    assert last_exit(monitor).exit.cause == "shutdown"


def test_suspended_backend_is_stopped(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend under SIGSTOP, which does not answer `Free`, ends on SIGTERM like any other."""
    monitor = make_monitor(status_timeout_seconds=1.0, stop_timeout_seconds=600)
    backend = spawner.backend()
    register(monitor, backend.pid, address=backend.address)
    suspend(backend.pid)
    assert stop_backend(monitor, backend.pid).failure is None
    assert backend.process.wait(60) == 0


def test_backend_that_has_ended_is_not_stopped(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Its own exit is recorded, and no hook is called."""
    called: list[Backend] = []
    monitor = make_monitor([StopHook(called.append)])
    process = spawner.sleeper()
    register(monitor, process.pid)
    stop = begin_stop(monitor, process.pid)
    process.kill()
    eventually(lambda: not monitor.backends())
    with stop.resources:
        stopper(monitor).open(stop)
        assert stop.is_left_behind
        stopper(monitor).stop(stop)
    assert stop.failure is None
    assert called == []
    assert last_exit(monitor).exit.cause == "killed"


def test_backend_that_ends_before_its_stop_is_no_failure(
    monitor: Monitor, spawner: Spawner
) -> None:
    """Its children, which are in no other tree, are stopped."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait", start_new_session=False)
    assert process.stdout
    child = int(process.stdout.readline())
    register(monitor, process.pid)
    stop = begin_stop(monitor, process.pid)
    with stop.resources:
        stopper(monitor).open(stop)
        process.kill()
        process.wait()
        eventually(lambda: not monitor.backends())
        stopper(monitor).stop(stop)
    assert stop.failure is None
    assert not is_running(child)
    assert last_exit(monitor).exit.cause != "shutdown"


# Prints `Free` when it is asked to free its model, and `SIGTERM` before it ends.
SAYS_WHAT_COMES = """
import os, signal, sys
from concurrent import futures
import grpc
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
def free(request, context):
    os.write(1, b"Free\\n")
    if sys.argv[1] == "fails":
        context.abort(grpc.StatusCode.INTERNAL, "")
    return b""
server = grpc.server(futures.ThreadPoolExecutor(2))
handler = grpc.unary_unary_rpc_method_handler(free)
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("backend.Backend", {"Free": handler}),)
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
os.write(1, b"127.0.0.1:%d\\n" % port)
signal.sigwait({signal.SIGTERM})
os.write(1, b"SIGTERM\\n")
os._exit(0)
"""


@pytest.mark.parametrize("free", ["works", "fails"])
def test_model_is_freed_before_the_backend_is_stopped(
    free: str, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """`Free`, then the host's hook, then SIGTERM; a `Free` that fails changes nothing."""
    process = spawner.python(SAYS_WHAT_COMES, free)
    assert process.stdout
    address = process.stdout.readline().strip()
    printed: list[str] = []

    def hook(backend: Backend) -> None:
        assert process.stdout
        printed.append(process.stdout.readline())

    monitor = make_monitor([StopHook(hook)])
    register(monitor, process.pid, address=address)
    assert stop_backend(monitor, process.pid).failure is None
    assert printed == ["Free\n"]
    assert process.stdout.read() == "SIGTERM\n"


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


class Works:
    """A status hook: the backend is READY, and works on some requests, of which some wait."""

    def __init__(self, running: int, waiting: int) -> None:
        self.status = Status(State.READY, None, running, waiting)
        self.asked = 0

    @hookimpl
    def monitor_query_status(self) -> Status:
        self.asked += 1
        return self.status


@pytest.mark.parametrize(("running", "waiting"), [(1, 0), (0, 1)])
def test_backend_with_requests_is_drained_although_it_is_ready(
    running: int, waiting: int, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A server that could take more requests is READY with `busy_when=full`."""
    works = Works(running, waiting)
    monitor = make_monitor([works], drain_timeout_seconds=3600, sweep_interval_seconds=0)
    process = spawner.sleeper()
    register(monitor, process.pid)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        eventually(lambda: works.asked > 2)
        assert is_running(process.pid)
        works.status = Status(State.READY, None, 0, 0)
        stopping.result(60)
    assert not is_running(process.pid)


def test_backend_with_requests_after_the_drain_can_be_spared(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """It may be busy, with a drain and, by its last status, without one."""
    for drain_seconds in (0.3, 0.0):
        monitor = make_monitor([Works(1, 0)], drain_timeout_seconds=drain_seconds)
        process = spawner.sleeper()
        register(monitor, process.pid)
        assert monitor.read("m").status
        with pytest.raises(ShutdownFailed, match="may be busy"):
            monitor.shutdown("m", spare_busy=True)
        assert is_running(process.pid)


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


@pytest.mark.parametrize(
    ("switches", "drain_seconds", "is_busy"),
    [
        (("--hang-status",), 60.0, True),
        (("--state", "1"), 0.3, True),
        ((), 1e-9, True),  # its time is over before it is asked
        ((), 60.0, False),
        ((), 0.0, False),  # it is not to be asked
        (("--no-status",), 60.0, False),
    ],
)
def test_backend_that_may_be_busy_after_the_drain_can_be_spared(
    switches: tuple[str, ...],
    drain_seconds: float,
    is_busy: bool,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
) -> None:
    """A backend without an answer may be busy, although no drain waits for it."""
    monitor = make_monitor(drain_timeout_seconds=drain_seconds, status_timeout_seconds=1.0)
    backend = spawner.backend(*switches)
    register(monitor, backend.pid, address=backend.address)
    with pytest.raises(ShutdownFailed, match="may be busy") if is_busy else nullcontext():
        monitor.shutdown("m", spare_busy=True)
    assert is_running(backend.pid) is is_busy


def test_backend_that_was_busy_and_cannot_be_reached_can_be_spared(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """It is not known whether the backend has finished."""
    busy = StaysBusy()
    monitor = make_monitor([busy], drain_timeout_seconds=60)
    process = spawner.sleeper()
    register(monitor, process.pid)
    assert monitor.read("m").source == "hook"
    monitor.plugin_manager.unregister(busy)
    with pytest.raises(ShutdownFailed, match="may be busy"):
        monitor.shutdown("m", spare_busy=True)
    assert is_running(process.pid)


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


def test_backend_is_stopped_where_no_thread_can_be_started(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that searches for new children while hooks run is not needed for a stop."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    refuse_thread(monkeypatch)
    stop = stop_backend(monitor, process.pid)
    assert not stop.failure
    assert not is_running(process.pid)


@pytest.mark.parametrize(
    ("answer", "words"), [(True, "nothing was signalled"), (False, "could not stop it")]
)
def test_backend_that_the_host_does_not_stop_is_a_failure(
    answer: bool, words: str, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The backend gets no signal, and stays registered."""
    process = spawner.sleeper()
    monitor = make_monitor([StopHook(lambda backend: answer)], stop_timeout_seconds=0.3)
    register(monitor, process.pid)
    stop = stop_backend(monitor, process.pid)
    assert stop.by_host is answer
    assert stop.failure
    assert words in str(stop.failure)
    assert stop.failure.pids == (process.pid,)
    assert is_running(process.pid)
    assert not stop.record.stopping
    assert len(monitor.backends()) == 1


def test_process_that_the_host_starts_instead_is_not_stopped(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The stop succeeds; the new backend is another one, also at the same address."""
    started: list[subprocess.Popen[str]] = []

    def restart(backend: Backend) -> bool:
        process.kill()
        process.wait()
        started.append(spawner.sleeper())
        register(monitor, started[0].pid)
        return True

    process = spawner.sleeper()
    monitor = make_monitor([StopHook(restart)])
    register(monitor, process.pid)
    stop = stop_backend(monitor, process.pid)
    assert (stop.failure, stop.by_host) == (None, True)
    assert [each.pid for each in monitor.backends()] == [started[0].pid]
    assert is_running(started[0].pid)


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


def test_backend_whose_processes_cannot_be_listed_is_not_stopped(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a free descriptor it is not known which processes belong to it."""

    def fail_to_open(table: MemberTable, members: Members) -> ProcessSnapshot:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(MemberTable, "rescan", fail_to_open)
    process = spawner.sleeper()
    register(monitor, process.pid)
    stop = stop_backend(monitor, process.pid)
    assert stop.failure
    assert "its processes cannot be looked at: [Errno 24] Too many open files" in str(stop.failure)
    assert stop.failure.pids == (process.pid,)
    assert is_running(process.pid)
    assert len(monitor.backends()) == 1


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
    process = spawner.sleeper(serves=address)
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


# Ends with 7 at SIGUSR1, ignores SIGTERM.
WANTS_SIGUSR1 = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
os._exit(7)
"""


class SignalHook:
    """A plugin whose `monitor_stop_signal` returns a given signal."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    @hookimpl
    def monitor_stop_signal(self, backend: Backend) -> int | None:
        return self.number


def test_plugin_chooses_the_signal_of_the_root(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend that ignores SIGTERM ends in time."""
    monitor = make_monitor([SignalHook(signal.SIGUSR1), SignalHook(None)], stop_timeout_seconds=600)
    process = spawner.python(WANTS_SIGUSR1)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(monitor, process.pid)
    assert stop_backend(monitor, process.pid).failure is None
    assert process.wait(60) == 7
    assert last_exit(monitor).exit.cause == "shutdown"


# Its worker ends on SIGTERM; the root ignores SIGTERM, and ends when the worker has ended.
WAITS_FOR_WORKER = """
import os, signal
worker = os.fork()
if not worker:
    signal.pause()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
os.wait()
os._exit(8)
"""


def test_setting_sends_sigterm_to_all_members_at_once(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """With `stop_signal_target` `all`, workers need not wait for half of the grace."""
    monitor = make_monitor(stop_signal_target="all", stop_timeout_seconds=600)
    process = spawner.python(WAITS_FOR_WORKER)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    register(monitor, process.pid)
    began = time.monotonic()
    assert stop_backend(monitor, process.pid).failure is None
    assert time.monotonic() - began < 300
    assert process.wait(60) == 8


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ([], "by nothing: it may not be signalled"),
        ([signal.SIGTERM], "by SIGTERM"),
        ([signal.SIGTERM, signal.SIGKILL], "by SIGTERM, and 10 s later by SIGKILL"),
        ([signal.SIGINT, signal.SIGTERM], "by SIGINT and SIGTERM"),
        ([40, signal.SIGKILL], "by signal 40, and 10 s later by SIGKILL"),
        ([signal.SIGKILL], "by SIGKILL"),
    ],
)
def test_signals_of_a_stop_are_listed_in_words(sent: list[int], text: str) -> None:
    """In the order in which they were sent."""
    assert describe_signals(sent, 10.0) == text


def test_pids_are_listed_in_words() -> None:
    """One or several."""
    assert format_pids([5]) == "PID 5"
    assert format_pids([5, 6]) == "PIDs 5, 6"
