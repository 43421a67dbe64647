"""Registration with its checks, and every way by which an end is noticed."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from monitor_plugin import (
    Backend,
    BackendExit,
    InvalidBackend,
    ModelNotLoaded,
    Monitor,
    hookimpl,
)
from monitor_plugin.backends import registration
from monitor_plugin.processes.process import Process, ProcessGone

from ..support import Client, Spawner, eventually, is_running


class Recorder:
    """A plugin that notes what it is told of backends."""

    def __init__(self) -> None:
        self.registered: list[Backend] = []
        self.gone: list[tuple[Backend, BackendExit]] = []
        self.told: list[tuple[str, int]] = []  # of both, with the PID

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self.told.append(("registered", backend.pid))
        self.registered.append(backend)

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.told.append(("gone", backend.pid))
        self.gone.append((backend, exit))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], recorder: Recorder) -> Monitor:
    return make_monitor(plugins=[recorder])


def spawned(monitor: Monitor, pid: Any, model: Any = "m", address: Any = "127.0.0.1:1") -> None:
    monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)


def test_values_of_subclasses_are_kept_as_plain_ones(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A string or a number of a kind of its own is listed and told of like any other."""

    class Name(str, enum.Enum):
        LLAMA = "llama"

    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    process = spawner.sleeper()
    spawned(monitor, Number(process.pid), Name.LLAMA, Text("127.0.0.1:1"))
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


class Order:
    """A plugin that notes which events came, in their order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self.events.append(("registered", backend.pid))

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.events.append(("gone", backend.pid))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["add", "update"])
def test_an_end_amid_its_registration_is_told_once_and_last(
    what: str,
    when: str,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the end comes, hooks hear of it after each registration, and once."""
    order = Order()
    monitor = make_monitor([order])
    process = spawner.sleeper()
    if what == "update":
        spawned(monitor, process.pid, "first")
    monkeypatch.setattr(monitor._services.registry, what, Ending(monitor, process, what, when))
    refused = when == "before" and what == "update"
    with pytest.raises(InvalidBackend) if refused else contextlib.nullcontext():
        spawned(monitor, process.pid)
    eventually(lambda: ("gone", process.pid) in order.events)
    registrations = 1 if what == "add" or refused else 2
    assert order.events == [("registered", process.pid)] * registrations + [("gone", process.pid)]
    with pytest.raises(InvalidBackend):
        spawned(monitor, process.pid)
    assert len(order.events) == registrations + 1


class Ending:
    """A method of the registry's, before or after which a process ends, which is noticed."""

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


def test_a_backend_is_registered(monitor: Monitor, recorder: Recorder, spawner: Spawner) -> None:
    """The record has the process's creation time, and hooks hear of it before the host goes on."""
    process = spawner.sleeper()
    spawned(monitor, process.pid)
    (backend,) = monitor.backends()
    assert backend == recorder.registered[0]
    assert (backend.model, backend.pid, backend.address) == ("m", process.pid, "127.0.0.1:1")
    assert backend.created_at == pytest.approx(psutil.Process(process.pid).create_time())


@pytest.mark.parametrize("pid", [0, 1, -5, "12", 1.5, True, None, 2**22 + 1, 2**70])
def test_a_bad_pid_is_refused(pid: Any, monitor: Monitor) -> None:
    """A PID that is none, that no process has, or that nobody may stop, changes nothing."""
    with pytest.raises(InvalidBackend) as raised:
        spawned(monitor, pid)
    assert raised.value.pid is pid or raised.value.pid == pid
    assert monitor.backends() == []


def test_the_monitor_and_its_ancestors_are_refused(monitor: Monitor) -> None:
    """Its own process, and those that it descends from, would be stopped with the backend."""
    for pid in (os.getpid(), os.getppid()):
        if pid > 1:
            with pytest.raises(InvalidBackend, match="own process"):
                spawned(monitor, pid)


def test_who_leads_the_monitors_session_is_refused(spawner: Spawner) -> None:
    """The session of a registered process is stopped with it, and the monitor is a member here."""
    monitor = (
        "import os, sys, monitor_plugin\n"
        "while os.getppid() == int(sys.argv[1]): pass\n"  # until it is nobody's descendant here
        "with monitor_plugin.Monitor(monitor_plugin.Settings(listen=None)) as monitor:\n"
        "    try:\n"
        "        monitor.hook.monitor_backend_spawned("
        "            model='m', pid=os.getsid(0), address='127.0.0.1:1')\n"
        "    except monitor_plugin.InvalidBackend as error:\n"
        "        print('refused:', error, flush=True)\n"
        "    else:\n"
        "        print('taken', flush=True)\n"
    )
    leader = spawner.python(
        "import os, subprocess, sys, time\n"
        "if os.fork() == 0:\n"
        "    subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(1000)\n",
        monitor,
    )
    assert leader.stdout is not None
    assert leader.stdout.readline().startswith("refused: ")


def test_a_thread_id_is_refused(monitor: Monitor, spawner: Spawner) -> None:
    """A thread's id looks like a PID, and is none."""
    backend = spawner.backend()
    tids = [int(tid) for tid in os.listdir(f"/proc/{backend.pid}/task")]
    (tid, *_) = [tid for tid in tids if tid != backend.pid]
    with pytest.raises(InvalidBackend, match="does not run"):
        spawned(monitor, tid)


def test_a_process_that_has_ended_is_refused(monitor: Monitor, spawner: Spawner) -> None:
    """A zombie, and a PID that was reaped, do not run."""
    process = spawner.process("true")
    eventually(lambda: not is_running(process.pid))
    with pytest.raises(InvalidBackend, match="does not run"):
        spawned(monitor, process.pid)
    process.wait()
    with pytest.raises(InvalidBackend, match="does not run"):
        spawned(monitor, process.pid)


@pytest.mark.parametrize("model", ["", "x" * 256, "a\n", None, 5, "\ud800"])
def test_a_bad_model_is_refused(model: Any, monitor: Monitor, spawner: Spawner) -> None:
    """What may not be a model's name for clients may not be one for hosts either."""
    with pytest.raises(InvalidBackend, match="model's name"):
        spawned(monitor, spawner.sleeper().pid, model)
    assert monitor.backends() == []


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1:80", "[::1]", "[::g]:80", "http://127.0.0.1:80", "1.2.3.4.5:80", "256.1.1.1:80"),
        *("unix:", "unix:rel", "unix:/" + "x" * 107, "unix-abstract:", "dns:name:80", "a b:80"),
        *("ipv4:127.0.0.1:80", "127.0.0.1:80\n", "host:8٣", None, 5, "a..b:80", "dns:///x"),
    ],
)
def test_a_bad_address_is_refused(address: Any, monitor: Monitor, spawner: Spawner) -> None:
    """What gRPC would misunderstand in silence is refused, with the forms that are taken."""
    with pytest.raises(InvalidBackend, match="address"):
        spawned(monitor, spawner.sleeper().pid, address=address)
    assert monitor.backends() == []


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:1", "127.0.0.1:65535", "[::1]:80", "dns:///some-host.example:80", "h_1:80"),
        *("unix:/run/x.sock", "unix:///run/x.sock", "unix-abstract:name", "[fe80::1%eth0]:80"),
        *("grpcs://some-host.example:443", "grpcs://[::1]:443"),
    ],
)
def test_good_addresses_are_taken(
    address: str, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Every form of the contract is taken, and kept as the host gave it."""
    monitor = make_monitor(insecure=True)
    spawned(monitor, spawner.sleeper().pid, address=address)
    assert monitor.backends()[0].address == address


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1:9", "localhost:9"),
        ("127.0.0.1:9", "dns:///LOCALHOST:09"),
        ("0.0.0.0:9", "127.0.0.1:9"),
        ("[::1]:9", "[0:0::1]:9"),
        ("unix:/a/s", "unix:///a/./s"),
    ],
)
def test_an_address_is_held_by_one(
    held: str, wanted: str, monitor: Monitor, spawner: Spawner
) -> None:
    """The address of a live backend is refused to another, however it is written."""
    holder = spawner.sleeper()
    spawned(monitor, holder.pid, "first", held)
    with pytest.raises(InvalidBackend, match=f"held by process {holder.pid} of model 'first'"):
        spawned(monitor, spawner.sleeper().pid, "second", wanted)
    assert [backend.model for backend in monitor.backends()] == ["first"]


def test_a_restart_takes_over_the_address(
    monitor: Monitor, recorder: Recorder, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that replaces one that has just died, at its address, needs nothing special.

    The end is told of first, however long it takes to let go of what died.
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
        spawned(monitor, process.pid)
        expected += [("registered", process.pid), ("gone", process.pid)]
        process.kill()
        process.wait()
    eventually(lambda: len(recorder.gone) == 20)
    assert recorder.told == expected


def test_the_same_pid_updates_its_record(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A PID that is registered again gets the new model and address; the same again is nothing."""
    process, other = spawner.sleeper(), spawner.sleeper()
    spawned(monitor, other.pid, "other", "127.0.0.1:3")
    spawned(monitor, process.pid, "old", "127.0.0.1:1")
    spawned(monitor, process.pid, "new", "127.0.0.1:2")
    spawned(monitor, process.pid, "new", "127.0.0.1:2")
    assert [(b.model, b.address) for b in monitor.backends()] == [
        ("other", "127.0.0.1:3"),
        ("new", "127.0.0.1:2"),
    ]
    assert len(recorder.registered) == 3
    with pytest.raises(ModelNotLoaded):
        monitor.read("old")
    with pytest.raises(InvalidBackend, match="held by"):
        spawned(monitor, process.pid, "new", "127.0.0.1:3")
    assert monitor.read("new").backend.address == "127.0.0.1:2"


def test_replicas_are_read_newest_first(monitor: Monitor, spawner: Spawner) -> None:
    """Of several backends of one model the newest is read; when it ends, the one before."""
    first, second = spawner.sleeper(), spawner.sleeper()
    spawned(monitor, first.pid, address="127.0.0.1:1")
    spawned(monitor, second.pid, address="127.0.0.1:2")
    assert monitor.read("m").backend.pid == second.pid
    second.kill()
    eventually(lambda: monitor.read("m").backend.pid == first.pid)


@pytest.mark.parametrize(
    ("command", "number", "cause", "code"),
    [
        (["sh", "-c", "read x; exit 7"], None, "exited", 7),
        (["sleep", "1000"], signal.SIGKILL, "killed", None),
        (["sleep", "1000"], signal.SIGTERM, "killed", None),
    ],
)
def test_an_end_is_noticed_without_a_word(
    command: list[str],
    number: int | None,
    cause: str,
    code: int | None,
    monitor: Monitor,
    recorder: Recorder,
    spawner: Spawner,
) -> None:
    """A death is told once, with code or signal, before the host reaps it or says so."""
    process = spawner.process(*command, stdin=subprocess.PIPE)
    spawned(monitor, process.pid)
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


def test_the_word_of_the_host_completes_the_record(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """A host that reaps and says so at once is believed about the exit code."""
    process = spawner.sleeper()
    spawned(monitor, process.pid)
    process.kill()
    process.wait()
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=-9)
    with pytest.raises(ModelNotLoaded, match="SIGKILL"):
        monitor.read("m")
    eventually(lambda: len(recorder.gone) == 1)


def test_idle_words_change_nothing(monitor: Monitor, recorder: Recorder, spawner: Spawner) -> None:
    """Word about a stranger, about a process that runs, or about another model, is passed over."""
    process = spawner.sleeper()
    spawned(monitor, process.pid)
    monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=0)
    monitor.hook.monitor_backend_exited(model="x", pid=process.pid, exit_code=0)
    monitor.hook.monitor_backend_exited(model="m", pid=99999999, exit_code=None)
    for bad in ({"pid": "1"}, {"exit_code": "0"}, {"exit_code": True}, {"model": None}):
        arguments = {"model": "m", "pid": process.pid, "exit_code": 0, **bad}
        with pytest.raises(InvalidBackend):
            monitor.hook.monitor_backend_exited(**arguments)
    assert len(monitor.backends()) == 1
    assert recorder.gone == []


def test_a_dead_backend_is_not_answered_for_by_another(monitor: Monitor, spawner: Spawner) -> None:
    """Whoever serves at its address now: a backend whose process has ended is not loaded."""
    process, stranger = spawner.sleeper(), spawner.backend()
    spawned(monitor, process.pid, address=stranger.address)
    assert monitor.read("m").source == "grpc"
    process.kill()
    with pytest.raises(ModelNotLoaded):
        eventually(lambda: monitor.read("m") is None)


def test_without_descriptors_ends_are_noticed_by_polling(spawner: Spawner) -> None:
    """Where descriptors are few, watching takes at most half of them, and polls the rest."""
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


def test_the_host_may_use_up_all_descriptors(spawner: Spawner) -> None:
    """While not one can be opened ends are noticed, and nothing false is said; then all is well."""
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
    spawned = monitor.hook.monitor_backend_spawned
    for n, each in enumerate(started[:12]):
        spawned(model=str(n), pid=each.pid, address=f"unix:/{n}")
    for model in ("1", "10"):
        monitor.read(model)  # gRPC aborts where its first use finds no descriptor
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
    print(fault(lambda: spawned(model="late", pid=started[12].pid, address="unix:/late")))
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


def test_registrations_leave_nothing_behind(monitor: Monitor, spawner: Spawner) -> None:
    """After many backends came, were read and went, descriptors and threads are as before."""

    def come_and_go() -> None:
        process = spawner.process("sleep", "1000", stdout=subprocess.DEVNULL)
        spawned(monitor, process.pid, address="127.0.0.1:1")
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


def test_the_hosts_word_comes_second(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """Where the monitor saw itself how a process ended, another word of the host's is not taken."""
    for code, words in (("kill -9 $$", "was killed by SIGKILL"), ("exit 3", "exited with code 3")):
        process = spawner.process("sh", "-c", f"read line; {code}", stdin=subprocess.PIPE)
        spawned(monitor, process.pid)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        eventually(lambda: not monitor.backends())
        process.communicate()  # not before: of what is reaped an older kernel tells no exit code
        for said in (0, -15, None):
            monitor.hook.monitor_backend_exited(model="m", pid=process.pid, exit_code=said)
        with pytest.raises(ModelNotLoaded, match=f"its process {process.pid} {words}"):
            monitor.read("m")


def test_the_last_hundred_ends_are_remembered(monitor: Monitor, spawner: Spawner) -> None:
    """Of a model that ended before those nothing is known any more."""
    for number in range(101):
        process = spawner.process("sleep", "1000", stdout=subprocess.DEVNULL)
        spawned(monitor, process.pid, str(number))
        process.kill()
        process.wait()
    eventually(lambda: not monitor.backends())
    with pytest.raises(ModelNotLoaded, match=r"'0' is not loaded$"):
        monitor.read("0")
    with pytest.raises(ModelNotLoaded, match=r"'1' is not loaded: its process"):
        monitor.read("1")


def test_a_dead_backend_is_not_answered_for_by_who_serves_its_address(
    monitor: Monitor, recorder: Recorder, spawner: Spawner
) -> None:
    """Not even where its end was not noticed yet: a reading looks for itself, and notices it."""
    process, stranger = spawner.sleeper(), spawner.backend()
    spawned(monitor, process.pid, address=stranger.address)
    (record,) = monitor._services.registry.records()
    monitor._services.exit_recorder.watcher.unwatch(record.process)
    process.kill()
    eventually(lambda: not is_running(process.pid))
    assert len(monitor.backends()) == 1
    with pytest.raises(ModelNotLoaded, match="SIGKILL"):
        monitor.read("m")
    assert [backend.pid for backend, _ in recorder.gone] == [process.pid]


def test_who_comes_late_leaves_no_connection(monitor: Monitor, spawner: Spawner) -> None:
    """A reading or a `Free` that comes after a backend's end keeps no channel to its address."""
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    (record,) = monitor._services.registry.records("m")
    backend.process.kill()
    eventually(lambda: record.process.pidfd is None)  # it was let go
    connections = monitor._services.status_client._connections
    with pytest.raises(ProcessGone):
        monitor._services.backend_reader.status(record)
    assert connections == {}
    monitor._services.status_client.free(record.backend)
    assert connections
    monitor._services.exit_recorder.end(record)
    assert connections == {}


def test_a_registration_that_meets_the_close_leaves_nothing(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that a host's other thread registers meanwhile is not kept by a closed monitor."""
    process = spawner.sleeper()
    opened = []

    class ClosedMeanwhile(Process):
        def __init__(self, pid: int, *, keep_descriptor: bool = True) -> None:
            super().__init__(pid, keep_descriptor=keep_descriptor)
            opened.append(self)
            monitor.close()

    monkeypatch.setattr(registration, "Process", ClosedMeanwhile)
    with pytest.raises(InvalidBackend, match="the monitor is closed"):
        spawned(monitor, process.pid)
    assert monitor.backends() == []
    assert [each.pidfd for each in opened] == [None]


def test_a_reading_during_an_update_leaves_no_connection(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Who asks at an address from which the backend has just moved keeps no channel to it."""
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
