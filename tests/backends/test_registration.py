"""Registration of backends, and its checks."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor_plugin import (
    Backend,
    InvalidBackend,
    ModelNotLoaded,
    Monitor,
    ShutdownRefused,
    State,
    hookimpl,
)
from monitor_plugin.backends import registration
from monitor_plugin.processes.process import Process, ProcessGone

from ..support import Client, Spawner, descriptors, eventually, is_running, register
from .conftest import Recorder


def test_registration_takes_values_of_subclasses_as_plain_ones(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A string or a number of a subclass is listed and passed to hooks as a plain one."""

    class Name(str, enum.Enum):
        LLAMA = "llama"

    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    process = spawner.sleeper()
    register(monitor, Number(process.pid), Name.LLAMA, Text("127.0.0.1:1"))
    (backend,) = recorder.registered
    values = (backend.model, backend.pid, backend.address)
    assert [type(each) for each in values] == [str, int, str]
    assert values == ("llama", process.pid, "127.0.0.1:1")
    client = Client(monitor.url)
    assert [each["model"] for each in client.request("GET", "/backends").json["backends"]] == [
        "llama"
    ]
    assert monitor.read(Name.LLAMA).backend == backend
    process.kill()
    monitor.hook.monitor_backend_exited(
        model=Name.LLAMA, pid=Number(process.pid), exit_code=Number(-process.wait())
    )
    eventually(lambda: not monitor.backends())
    (end,) = client.request("GET", "/backends").json["ended"]
    assert (end["model"], end["pid"]) == ("llama", process.pid)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["add", "update"])
def test_exit_during_a_registration_is_reported_once_and_last(
    what: str,
    when: str,
    monitor: Monitor,
    recorder: Recorder,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever the exit comes, hooks are called for it once, after each registration."""
    process = spawner.sleeper()
    if what == "update":
        register(monitor, process.pid, "first")
    monkeypatch.setattr(monitor._services.registry, what, Ending(monitor, process, what, when))
    refused = when == "before" and what == "update"
    with pytest.raises(InvalidBackend) if refused else contextlib.nullcontext():
        register(monitor, process.pid)
    eventually(lambda: ("gone", process.pid) in recorder.events)
    registrations = 1 if what == "add" or refused else 2
    assert recorder.events == [("registered", process.pid)] * registrations + [
        ("gone", process.pid)
    ]
    with pytest.raises(InvalidBackend):
        register(monitor, process.pid)
    assert len(recorder.events) == registrations + 1


class Ending:
    """Replaces a method of the registry; a process ends before or after its call."""

    def __init__(
        self, monitor: Monitor, process: subprocess.Popen[str], method: str, when: str
    ) -> None:
        self._monitor = monitor
        self._process = process
        self._real: Callable[..., object] = getattr(monitor._services.registry, method)
        self._when = when

    def __call__(self, *arguments: object) -> object:
        if self._when == "before":
            self._end()
        result = self._real(*arguments)
        if self._when == "after":
            self._end()
        return result

    def _end(self) -> None:
        self._process.kill()
        eventually(lambda: not is_running(self._process.pid))
        eventually(lambda: not self._monitor.backends())


def test_registration_reads_the_creation_time_and_calls_hooks(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """The record has the process's creation time, and hooks are called before the host goes on."""
    process = spawner.sleeper()
    register(monitor, process.pid)
    (backend,) = monitor.backends()
    assert backend == recorder.registered[0]
    assert (backend.model, backend.pid, backend.address) == ("m", process.pid, "127.0.0.1:1")
    assert backend.created_at == pytest.approx(psutil.Process(process.pid).create_time())


@pytest.mark.parametrize("pid", [0, 1, -5, "12", 1.5, True, None, 2**22 + 1, 2**70])
def test_registration_refuses_an_unusable_pid(pid: Any, monitor: Monitor) -> None:
    """A value that is no PID, that no process has, or that may not be stopped changes nothing."""
    with pytest.raises(InvalidBackend) as raised:
        register(monitor, pid)
    assert raised.value.pid is pid or raised.value.pid == pid
    assert monitor.backends() == []


def test_registration_refuses_the_monitor_and_its_ancestors(monitor: Monitor) -> None:
    """The monitor's own process and its ancestors would be stopped with the backend."""
    for pid in (os.getpid(), os.getppid()):
        if pid > 1:
            with pytest.raises(InvalidBackend, match="own process"):
                register(monitor, pid)


@pytest.mark.parametrize("leads", ["session", "process group"])
def test_registration_refuses_the_leader_of_the_monitors_session_or_group(
    spawner: Spawner, leads: str
) -> None:
    """A stop ends the session or group that the backend leads, and the monitor is in it here."""
    monitor = (
        "import os, sys, monitor_plugin\n"
        "while os.getppid() == int(sys.argv[1]): pass\n"  # until it is nobody's descendant here
        "with monitor_plugin.Monitor(monitor_plugin.Settings(listen=None)) as monitor:\n"
        "    try:\n"
        "        monitor.hook.monitor_backend_spawned("
        "            model='m', pid=os.getpgid(0), address='127.0.0.1:1')\n"
        "    except monitor_plugin.InvalidBackend as error:\n"
        "        print('refused:', error, flush=True)\n"
        "    else:\n"
        "        print('taken', flush=True)\n"
    )
    leader = spawner.python(
        "import os, subprocess, sys, time\n"
        "if sys.argv[2] == 'process group':\n"
        "    os.setpgid(0, 0)\n"
        "assert (os.getsid(0) == os.getpid()) == (sys.argv[2] == 'session')\n"
        "if os.fork() == 0:\n"
        "    subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(1000)\n",
        monitor,
        leads,
        start_new_session=leads == "session",
    )
    assert leader.stdout is not None
    assert leader.stdout.readline().startswith("refused: ")


def test_registration_refuses_a_thread_id(monitor: Monitor, spawner: Spawner) -> None:
    """The ID of a thread looks like a PID, and is not one."""
    backend = spawner.backend()
    tids = [int(tid) for tid in os.listdir(f"/proc/{backend.pid}/task")]
    (tid, *_) = [tid for tid in tids if tid != backend.pid]
    with pytest.raises(InvalidBackend, match="does not run"):
        register(monitor, tid)


def test_registration_refuses_a_process_that_has_ended(monitor: Monitor, spawner: Spawner) -> None:
    """A zombie and a reaped process do not run."""
    process = spawner.process("true")
    eventually(lambda: not is_running(process.pid))
    with pytest.raises(InvalidBackend, match="does not run"):
        register(monitor, process.pid)
    process.wait()
    with pytest.raises(InvalidBackend, match="does not run"):
        register(monitor, process.pid)


@pytest.mark.parametrize("model", ["", "x" * 256, "a\n", None, 5, "\ud800"])
def test_registration_refuses_an_unusable_model_name(
    model: Any, monitor: Monitor, spawner: Spawner
) -> None:
    """Names that clients may not use are refused to hosts too."""
    with pytest.raises(InvalidBackend, match="model's name"):
        register(monitor, spawner.sleeper().pid, model)
    assert monitor.backends() == []


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1:80", "[::1]", "[::g]:80", "ftp://127.0.0.1:80", "1.2.3.4.5:80", "256.1.1.1:80"),
        *("unix:", "unix:rel", "unix:/" + "x" * 107, "unix-abstract:", "dns:name:80", "a b:80"),
        *("ipv4:localhost:80", "127.0.0.1:80\n", "host:8٣", None, 5, "a..b:80", "dns:///x"),
    ],
)
def test_registration_refuses_an_unusable_address(
    address: Any, monitor: Monitor, spawner: Spawner
) -> None:
    """Addresses that gRPC would silently misunderstand are refused, with the accepted forms."""
    with pytest.raises(InvalidBackend, match="address"):
        register(monitor, spawner.sleeper().pid, address=address)
    assert monitor.backends() == []


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:1", "127.0.0.1:65535", "[::1]:80", "dns:///some-host.example:80", "h_1:80"),
        *("unix:/run/x.sock", "unix:///run/x.sock", "unix-abstract:name", "[fe80::1%eth0]:80"),
        *("grpcs://some-host.example:443", "grpcs://[::1]:443", "http://127.0.0.1:80"),
    ],
)
def test_registration_accepts_every_form_of_address(
    address: str, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Every documented form is accepted, and kept as the host wrote it."""
    monitor = make_monitor(insecure=True)
    register(monitor, spawner.sleeper().pid, address=address)
    assert monitor.backends()[0].address == address


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1:9", "localhost:9"),
        ("127.0.0.1:9", "dns:///LOCALHOST:09"),
        ("0.0.0.0:9", "127.0.0.1:9"),
        ("127.0.0.1:9", "http://localhost:9/v1"),
        ("[::1]:9", "[0:0::1]:9"),
        ("unix:/a/s", "unix:///a/./s"),
    ],
)
def test_registration_refuses_the_address_of_another_backend(
    held: str, wanted: str, monitor: Monitor, spawner: Spawner
) -> None:
    """The address of a live backend is refused to another one in any notation."""
    holder = spawner.sleeper()
    register(monitor, holder.pid, "first", held)
    with pytest.raises(InvalidBackend, match=f"held by process {holder.pid} of model 'first'"):
        register(monitor, spawner.sleeper().pid, "second", wanted)
    assert [backend.model for backend in monitor.backends()] == ["first"]


def test_restarted_backend_takes_over_the_address(
    monitor: Monitor, recorder: Recorder, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend may replace one that has just ended, at the same address.

    Hooks are called for the exit first, however long the release of the ended backend takes.
    """
    client = monitor._services.status_client
    close_connection = client.close_connection

    def close_slowly(backend: Backend) -> None:
        time.sleep(0.05)
        close_connection(backend)

    monkeypatch.setattr(client, "close_connection", close_slowly)
    expected: list[tuple[str, int]] = []
    for _ in range(20):
        process = spawner.sleeper()
        register(monitor, process.pid)
        expected += [("registered", process.pid), ("gone", process.pid)]
        process.kill()
        process.wait()
    eventually(lambda: len(recorder.gone) == 20)
    assert recorder.events == expected


def test_registration_of_the_same_pid_updates_its_record(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A repeated PID gets the new model and address; an identical registration changes nothing."""
    process, other = spawner.sleeper(), spawner.sleeper()
    register(monitor, other.pid, "other", "127.0.0.1:3")
    register(monitor, process.pid, "old", "127.0.0.1:1")
    register(monitor, process.pid, "new", "127.0.0.1:2")
    register(monitor, process.pid, "new", "127.0.0.1:2")
    assert [(b.model, b.address) for b in monitor.backends()] == [
        ("other", "127.0.0.1:3"),
        ("new", "127.0.0.1:2"),
    ]
    assert len(recorder.registered) == 3
    with pytest.raises(ModelNotLoaded):
        monitor.read("old")
    with pytest.raises(InvalidBackend, match="held by"):
        register(monitor, process.pid, "new", "127.0.0.1:3")
    assert monitor.read("new").backend.address == "127.0.0.1:2"


def test_replicas_are_read_newest_first(monitor: Monitor, spawner: Spawner) -> None:
    """A reading has the newest backend of a model; after its exit, the previous one."""
    first, second = spawner.sleeper(), spawner.sleeper()
    register(monitor, first.pid, address="127.0.0.1:1")
    register(monitor, second.pid, address="127.0.0.1:2")
    assert monitor.read("m").backend.pid == second.pid
    second.kill()
    eventually(lambda: monitor.read("m").backend.pid == first.pid)


@pytest.mark.once
def test_registrations_leak_no_descriptors_or_threads(monitor: Monitor, spawner: Spawner) -> None:
    """After many registrations, readings and exits, descriptors and threads are as before."""

    def come_and_go() -> None:
        process = spawner.process("sleep", "1000", stdout=subprocess.DEVNULL)
        register(monitor, process.pid, address="127.0.0.1:1")
        monitor.read("m")
        process.kill()
        process.wait()
        monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=-9)

    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    for _ in range(10):
        come_and_go()
    eventually(lambda: not monitor.backends())
    before = counts()
    for _ in range(100):
        come_and_go()
    eventually(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)))


def test_registration_during_the_close_leaves_nothing(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed monitor keeps no backend that another thread registers during the close."""
    process = spawner.sleeper()
    opened = []

    class ClosedMeanwhile(Process):
        def __init__(self, pid: int, *, keep_descriptor: bool = True) -> None:
            super().__init__(pid, keep_descriptor=keep_descriptor)
            opened.append(self)
            monitor.close()

    monkeypatch.setattr(registration, "Process", ClosedMeanwhile)
    with pytest.raises(InvalidBackend, match="the monitor is closed"):
        register(monitor, process.pid)
    assert monitor.backends() == []
    assert [each.pidfd for each in opened] == [None]


def test_reading_during_an_update_leaves_no_connection(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A reading at an address that the backend has just left keeps no channel to it."""
    backend, other = spawner.backend(), spawner.backend()
    moves = [other.address]
    watching: list[Monitor] = []

    class Moves:
        @hookimpl
        def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> None:
            while moves:
                watching[0].hook.monitor_backend_spawned(
                    model="m", pid=backend.pid, address=moves.pop()
                )

    monitor = make_monitor(plugins=[Moves()], hook_timeout_seconds=30.0)
    watching.append(monitor)
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    monitor.read("m")
    assert monitor.backends()[0].address == other.address
    assert monitor._services.status_client._connections == {}


def test_process_that_ends_during_its_registration_leaves_no_descriptor(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is refused, and its pidfd is closed."""
    process = spawner.sleeper()

    def fail(opened: Process) -> None:
        assert opened.pidfd is not None
        raise ProcessGone(opened.pid)

    monkeypatch.setattr(registration, "Sampler", fail)
    before = descriptors()
    with pytest.raises(InvalidBackend, match=f"process {process.pid} does not run"):
        register(monitor, process.pid)
    assert not descriptors() - before


# Prints the PID of its child, and goes on after the child has ended.
WRAPPER = "sleep 1000 & echo $!; wait; exec sleep 1000"


def spawn_wrapper(spawner: Spawner) -> tuple[subprocess.Popen[str], int]:
    """Start a process that starts another one and waits for it."""
    wrapper = spawner.process("sh", "-c", WRAPPER)
    assert wrapper.stdout
    return wrapper, int(wrapper.stdout.readline())


def registered(monitor: Monitor) -> list[tuple[str, int, str]]:
    return [(each.model, each.pid, each.address) for each in monitor.backends()]


@pytest.mark.parametrize("first", ["root", "member"])
def test_process_of_the_same_backend_takes_the_place_of_the_registered_one(
    first: str, monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """It is no exit, leaves nothing behind, and both processes stay members."""
    wrapper, child = spawn_wrapper(spawner)
    pids = [wrapper.pid, child] if first == "root" else [child, wrapper.pid]
    services = monitor._services
    register(monitor, pids[0], address="localhost:1")
    (old,) = services.registry.records()
    services.registry.change_state(old, State.READY, lambda previous: None)
    before = descriptors(), services.exit_recorder.watcher.pidfd_count()
    register(monitor, pids[1], address="127.0.0.1:1")
    assert registered(monitor) == [("m", pids[1], "127.0.0.1:1")]
    assert recorder.events == [("registered", pid) for pid in pids]
    (new,) = services.registry.records()
    assert {pid for pid, _ in new.members.identities()} == {wrapper.pid, child}
    assert new.state is State.READY
    assert services.exit_recorder.watcher.pidfd_count() == before[1]
    # Now or before, a thread that takes a snapshot or reads memory may have a file open.
    eventually(lambda: len(descriptors()) <= len(before[0]))
    assert list(services.registration._member_table._registered) == [new.members]
    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: recorder.events[2:] == [("gone", pids[1])])
    assert registered(monitor) == []


def test_a_backend_that_has_ended_is_not_replaced(
    monitor: Monitor, recorder: Recorder, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit is recorded, also if its server is registered before the watcher has noticed it."""
    wrapper, child = spawn_wrapper(spawner)
    register(monitor, wrapper.pid)
    monkeypatch.setattr(monitor._services.exit_recorder.watcher, "_on_exit", lambda process: None)
    wrapper.kill()
    wrapper.wait()
    register(monitor, child)
    assert recorder.events[:2] == [("registered", wrapper.pid), ("gone", wrapper.pid)]
    assert [pid for _, pid, _ in registered(monitor)] == [child]


def test_replaced_process_may_end_and_be_registered_again(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """The end of the process that was replaced is no exit of the backend."""
    wrapper, child = spawn_wrapper(spawner)
    register(monitor, wrapper.pid)
    register(monitor, child)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: registered(monitor) == [])
    register(monitor, wrapper.pid)
    assert registered(monitor) == [("m", wrapper.pid, "127.0.0.1:1")]
    other, server = spawn_wrapper(spawner)
    register(monitor, other.pid, "n", "127.0.0.1:2")
    register(monitor, server, "n", "127.0.0.1:2")
    other.kill()
    other.wait()
    register(monitor, spawner.sleeper().pid, "later", "127.0.0.1:3")
    assert ("n", server, "127.0.0.1:2") in registered(monitor)
    assert [pid for event, pid in recorder.events if event == "gone"] == [child]


def test_process_of_another_backend_or_model_does_not_take_an_address(
    monitor: Monitor, spawner: Spawner
) -> None:
    """Only a process of the same backend does, and only for the same model."""
    wrapper, child = spawn_wrapper(spawner)
    register(monitor, wrapper.pid)
    for pid, model in ((spawner.sleeper().pid, "m"), (child, "other")):
        with pytest.raises(InvalidBackend, match=f"is held by process {wrapper.pid} of model 'm'"):
            register(monitor, pid, model)
    register(monitor, child, address="127.0.0.1:2")
    with pytest.raises(InvalidBackend, match=f"is held by process {wrapper.pid} of model 'm'"):
        register(monitor, child)  # it is a backend itself
    assert [pid for _, pid, _ in registered(monitor)] == [wrapper.pid, child]


def test_process_is_not_replaced_during_a_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The shutdown stops what was registered when it began; afterwards a process is replaced."""
    wrapper, child = spawn_wrapper(spawner)
    errors: list[str] = []

    class Plugin:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> str:
            with pytest.raises(InvalidBackend) as error:
                register(monitor, child)
            errors.append(str(error.value))
            return "not now"

    monitor = make_monitor([Plugin()])
    register(monitor, wrapper.pid)
    with pytest.raises(ShutdownRefused):
        monitor.shutdown("m")
    assert errors == [
        "the backend was not registered: a shutdown of model 'm' is in progress, so process "
        f"{child} cannot take the place of the registered one; register it again after the "
        "shutdown"
    ]
    assert registered(monitor) == [("m", wrapper.pid, "127.0.0.1:1")]
    register(monitor, child)
    assert registered(monitor) == [("m", child, "127.0.0.1:1")]


def test_request_in_flight_leaves_no_connection_to_a_replaced_backend(
    monitor: Monitor, spawner: Spawner
) -> None:
    """A request may open a connection to the replaced backend just after it was closed."""
    wrapper, child = spawn_wrapper(spawner)
    register(monitor, wrapper.pid)
    services = monitor._services
    (old,) = services.registry.records()
    register(monitor, child)
    services.backend_reader.status(old)
    assert services.status_client.counts(old.backend) is None


@pytest.fixture
def adopted(
    monitor: Monitor, spawner: Spawner
) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """A registered client, and the process that was adopted in its place."""
    client, server = spawner.sleeper(), spawner.sleeper()
    register(monitor, client.pid)
    monitor.adopt_process(monitor.backends()[0], server.pid)
    return client, server


Adopted = tuple[subprocess.Popen[str], subprocess.Popen[str]]


def test_adopted_process_takes_the_place_of_the_registered_one(
    adopted: Adopted, monitor: Monitor, recorder: Recorder
) -> None:
    """It is no exit; the former stays a member, and its end is none of the backend's."""
    client, server = adopted
    assert registered(monitor) == [("m", server.pid, "127.0.0.1:1")]
    assert recorder.events == [("registered", client.pid), ("registered", server.pid)]
    assert monitor.host_pid(server.pid) == client.pid
    services = monitor._services
    (record,) = services.registry.records()
    services.member_table.snapshot(0.0)
    assert [pid for pid, _ in record.members.identities()] == [server.pid, client.pid]
    assert list(services.member_table._registered) == [record.members]
    assert services.exit_recorder.watcher.pidfd_count() == 1
    client.kill()
    client.wait()
    services.member_table.snapshot(0.0)
    assert [pid for pid, _ in record.members.identities()] == [server.pid]
    server.kill()
    eventually(lambda: recorder.events[2:] == [("gone", server.pid)])


def test_host_still_knows_a_backend_by_the_former_pid(
    adopted: Adopted, monitor: Monitor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registration updates the record of the adopted process; an exit code completes its exit."""
    monkeypatch.setattr(Process, "exit_code", lambda process: None)  # no child of the monitor
    client, server = adopted
    for _ in range(2):
        register(monitor, client.pid)
    assert len(recorder.events) == 2
    register(monitor, client.pid, "n", "127.0.0.1:2")
    assert registered(monitor) == [("n", server.pid, "127.0.0.1:2")]
    monitor.hook.monitor_backend_exited(model="n", pid=client.pid, exit_code=1)
    assert len(registered(monitor)) == 1  # the adopted process runs
    server.kill()
    server.wait()
    monitor.hook.monitor_backend_exited(model="n", pid=client.pid, exit_code=137)
    assert registered(monitor) == []
    (end,) = Client(monitor.url).request("GET", "/backends").json["ended"]
    assert (end["pid"], end["exit_code"]) == (server.pid, 137)
    register(monitor, client.pid, "n", "127.0.0.1:2")
    assert registered(monitor) == []  # the client is about to end


def test_former_process_that_outlives_the_adopted_one_is_registered_again(
    adopted: Adopted, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an operator sees a client that hangs."""
    client, server = adopted
    server.kill()
    server.wait()
    register(monitor, client.pid)
    assert registered(monitor) == []
    monkeypatch.setattr(registration, "_FORMER_ENDS_SECONDS", 0.0)
    register(monitor, client.pid)
    assert [pid for _, pid, _ in registered(monitor)] == [client.pid]


def test_member_that_a_host_finds_does_not_replace_an_adopted_process(
    monitor: Monitor, spawner: Spawner
) -> None:
    """Such as a child of the client that forwards the address's connections to the container."""
    wrapper, child = spawn_wrapper(spawner)
    server = spawner.sleeper()
    register(monitor, wrapper.pid)
    monitor.adopt_process(monitor.backends()[0], server.pid)
    register(monitor, child)
    assert [pid for _, pid, _ in registered(monitor)] == [server.pid]


def test_adopted_process_can_be_replaced_by_another_or_by_the_former(
    adopted: Adopted, monitor: Monitor, spawner: Spawner
) -> None:
    """Such as a container that was started again. The host's PID stands for the newest process."""
    client, server = adopted
    third = spawner.sleeper()
    monitor.adopt_process(monitor.backends()[0], third.pid)
    monitor.adopt_process(monitor.backends()[0], third.pid)
    register(monitor, client.pid)
    assert [pid for _, pid, _ in registered(monitor)] == [third.pid]
    assert monitor.host_pid(third.pid) == client.pid
    monitor.adopt_process(monitor.backends()[0], client.pid)
    register(monitor, client.pid)
    assert [pid for _, pid, _ in registered(monitor)] == [client.pid]
    assert monitor.host_pid(client.pid) == client.pid
    (record,) = monitor._services.registry.records()
    assert {pid for pid, _ in record.members.identities()} == {client.pid, server.pid, third.pid}


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (0, "PID 0 is no process that may be watched"),
        (1, "PID 1 is no process that may be watched"),
        (os.getpid(), "is the monitor's own process"),
        (2**22 + 1, "does not run"),
        ("5", "the PID must be an integer, not '5'"),
    ],
    ids=["0", "1", "own", "not running", "text"],
)
def test_unusable_process_is_not_adopted(
    pid: Any, reason: str, monitor: Monitor, spawner: Spawner
) -> None:
    """The error names both processes and the reason, and nothing was changed."""
    client = spawner.sleeper()
    register(monitor, client.pid)
    (backend,) = monitor.backends()
    before = descriptors()
    with pytest.raises(InvalidBackend, match=reason) as raised:
        monitor.adopt_process(backend, pid)
    assert f"in the place of process {client.pid} of model 'm': " in str(raised.value)
    assert (raised.value.pid, monitor.backends()) == (pid, [backend])
    eventually(lambda: descriptors() <= before)
    assert Client(monitor.url).request("GET", "/backends").json["refused"] == []


def test_process_of_another_backend_is_not_adopted(
    adopted: Adopted, monitor: Monitor, spawner: Spawner
) -> None:
    """Neither its registered process, nor that in whose place another one was adopted."""
    client, server = adopted
    register(monitor, spawner.sleeper().pid, "n", "127.0.0.1:2")
    first, second = monitor.backends()
    for pid in (client.pid, server.pid):
        with pytest.raises(InvalidBackend, match=f"belongs to process {server.pid} of model 'm'"):
            monitor.adopt_process(second, pid)
    assert monitor.backends() == [first, second]


def test_nothing_is_adopted_for_a_backend_that_is_not_registered(
    adopted: Adopted, monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """Such as one that has another process by now, or that has ended."""
    client, server = adopted
    other = spawner.sleeper()
    with pytest.raises(InvalidBackend, match=f"process {client.pid} is not registered"):
        monitor.adopt_process(recorder.registered[0], other.pid)
    (backend,) = monitor.backends()
    server.kill()
    server.wait()
    with pytest.raises(InvalidBackend, match=f"process {server.pid} is not registered"):
        monitor.adopt_process(backend, other.pid)
    monitor.close()
    with pytest.raises(InvalidBackend):
        monitor.adopt_process(backend, other.pid)


def test_nothing_is_adopted_during_a_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The shutdown stops what was registered when it began."""
    client, server = spawner.sleeper(), spawner.sleeper()
    errors: list[str] = []

    class Plugin:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> str | None:
            if errors:
                return None
            with pytest.raises(InvalidBackend) as error:
                monitor.adopt_process(backend, server.pid)
            errors.append(str(error.value))
            return "not now"

    monitor = make_monitor([Plugin()])
    register(monitor, client.pid)
    with pytest.raises(ShutdownRefused):
        monitor.shutdown("m")
    assert errors[0].endswith("a shutdown of model 'm' is in progress; try again after it")
    assert [pid for _, pid, _ in registered(monitor)] == [client.pid]
    monitor.adopt_process(monitor.backends()[0], server.pid)
    monitor.shutdown("m")
    client.wait(60)
    server.wait(60)


def test_output_of_the_client_is_read_for_an_adopted_process_without_a_file(
    monitor: Monitor, spawner: Spawner, tmp_path: Path
) -> None:
    """The client of a container writes what the container has written to a pipe."""
    with (tmp_path / "log").open("w") as log:
        client = spawner.process("sh", "-c", "echo loaded; exec sleep 1000", stdout=log)
    server = spawner.process("sleep", "1000", stderr=subprocess.PIPE)
    register(monitor, client.pid)
    monitor.adopt_process(monitor.backends()[0], server.pid)
    path = f"/backend/log?model=m&pid={server.pid}&stream=stdout"
    answer = Client(monitor.url).request("GET", path)
    assert b"loaded" in answer.body, answer
