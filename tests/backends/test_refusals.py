"""The list of refused registrations: what is in it, and for how long."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import Any

import pytest

from monitor_plugin import InvalidBackend, Monitor
from monitor_plugin.backends.refusals import MAX_REFUSALS, Refusals

from ..support import Client, Spawner, eventually, free_port, refuse_descriptors, register


def refuse(monitor: Monitor, pid: Any, model: Any = "m", address: Any = "nowhere") -> str:
    """Register what the monitor refuses; return the reason."""
    with pytest.raises(InvalidBackend) as raised:
        register(monitor, pid, model, address)
    return str(raised.value).removeprefix("the backend was not registered: ")


def refused(monitor: Monitor, path: str = "/backends") -> list[dict[str, Any]]:
    answer = Client(monitor.url).request("GET", path)
    assert answer.status == 200
    items: list[dict[str, Any]] = answer.json["refused"]
    return items


def test_refused_registrations_are_listed_with_their_reasons(
    monitor: Monitor, spawner: Spawner
) -> None:
    """So an operator sees in the list why a program that runs is not registered."""
    assert refused(monitor) == []
    first, second, third = (spawner.sleeper().pid for _ in range(3))
    register(monitor, first, "a", "127.0.0.1:1")
    reasons = [
        refuse(monitor, second, "b", "127.0.0.1:99999"),
        refuse(monitor, third, "c", "localhost:1"),
        refuse(monitor, third, "d", "example.com:1"),
    ]
    assert "the port must be a number from 1 to 65535" in reasons[0]
    assert f"is held by process {first} of model 'a'" in reasons[1]
    assert "is not on this machine" in reasons[2]
    expected = [
        {"model": "b", "pid": second, "address": "127.0.0.1:99999", "reason": reasons[0]},
        {"model": "c", "pid": third, "address": "localhost:1", "reason": reasons[1]},
        {"model": "d", "pid": third, "address": "example.com:1", "reason": reasons[2]},
    ]
    assert refused(monitor) == refused(monitor, "/backends?fresh=false") == expected
    assert refused(monitor, "/backends?model=c") == [expected[1]]
    assert refused(monitor, "/backends?model=a") == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:hunter2@localhost:80/a", "http://...@localhost:80/a"),
        ("https://a@b/hunter2@localhost:80", "https://...@localhost:80"),
        ("HTTP://user:hunter2@localhost:80", "HTTP://...@localhost:80"),
        ("user:hunter2@localhost:80", "...@localhost:80"),
        ("grpcs://hunter2@localhost:80 ", "grpcs://...@localhost:80 "),
        ("http://localhost:80/?key=hunter2", "http://localhost:80/?..."),
        ("http://localhost:80/#hunter2", "http://localhost:80/#..."),
        ("unix:relative@path", "unix:relative@path"),
    ],
)
def test_refusal_shows_no_password(
    address: str, shown: str, monitor: Monitor, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients that may only read see the list."""
    reason = refuse(monitor, spawner.sleeper().pid, "m", address)
    (item,) = refused(monitor)
    assert item["address"] == shown
    assert "hunter2" not in reason + str(item) + caplog.text


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (7, "7"),
        (b"\xff", r"b'\xff'"),
        (["a", 1], "['a', 1]"),
        ("\ud800", r"'\ud800'"),
        ("\u202e\x1b[2J\0", "\u202e\x1b[2J\0"),
        (Text(" x"), " x"),
        ("x" * 10_000, "x" * 499 + "…"),
        (Broken(), "<Broken>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_and_addresses_of_any_type_are_listed(
    value: Any, shown: str, monitor: Monitor, spawner: Spawner
) -> None:
    """What is no text, or cannot be encoded, is shown as its `repr`; all of it is cut."""
    pid = spawner.sleeper().pid
    refuse(monitor, pid, value, value)
    if value != " x":  # that is a valid name
        refuse(monitor, pid, value, "127.0.0.1:1")
        (item,) = refused(monitor)
        assert (item["model"], item["address"]) == (shown, "127.0.0.1:1")
    refuse(monitor, pid, "m", value)
    item = refused(monitor)[-1]
    assert (item["model"], item["address"]) == ("m", shown)
    assert len(item["reason"]) <= 500


@pytest.mark.parametrize("pid", [0, -5, True, None, "12", 1.5, 2**22 + 1, 2**70])
def test_refusal_without_a_process_is_not_listed(pid: Any, monitor: Monitor) -> None:
    """A value that is no PID, or that no process has, is only in the log of the host."""
    refuse(monitor, pid)
    assert refused(monitor) == []


def test_refusal_of_a_thread_is_not_listed(monitor: Monitor) -> None:
    """The ID of a thread is no PID, although /proc has a folder of that name."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert thread.native_id != os.getpid()
        refuse(monitor, thread.native_id)
        assert refused(monitor) == []
    finally:
        go.set()
        thread.join()


@pytest.mark.parametrize("reaped", [True, False])
def test_refusal_is_listed_while_its_process_runs(
    reaped: bool, monitor: Monitor, spawner: Spawner
) -> None:
    """A zombie has ended."""
    process = spawner.sleeper()
    refuse(monitor, process.pid)
    assert [each["pid"] for each in refused(monitor)] == [process.pid]
    process.kill()
    if reaped:
        process.wait()
    eventually(lambda: refused(monitor) == [])
    assert monitor._services.refusals._refusals == {}


def test_refusal_is_not_that_of_a_later_process_with_the_pid(spawner: Spawner) -> None:
    """A process is identified by its PID and its start time."""
    refusals, pid = Refusals(), spawner.sleeper().pid
    refusals.add("m", pid, "a", "no")
    ((key, refusal),) = refusals._refusals.items()
    refusals._refusals[key] = refusal._replace(started=refusal.started - 1)
    assert refusals.running() == []
    refusals.add("m", pid, "b", "no")
    assert [each.address for each in refusals.running()] == ["b"]


def test_registration_ends_the_refusal(monitor: Monitor, spawner: Spawner) -> None:
    """A later refusal is listed again, although the process stays registered."""
    process, other = spawner.sleeper(), spawner.sleeper()
    for model in ("m", "n"):
        refuse(monitor, process.pid, model)
        refuse(monitor, other.pid, model)
    register(monitor, process.pid)
    assert [each["pid"] for each in refused(monitor)] == [other.pid, other.pid]
    refuse(monitor, process.pid, "m", "elsewhere")
    assert refused(monitor)[-1]["address"] == "elsewhere"
    register(monitor, process.pid)  # the same as before
    assert [each["pid"] for each in refused(monitor)] == [other.pid, other.pid]


def test_registration_of_a_child_ends_the_refusal_of_its_program(
    monitor: Monitor, spawner: Spawner
) -> None:
    """A launcher that was refused may run on when the server that it started is registered."""
    address = f"127.0.0.1:{free_port()}"
    holder, other = spawner.sleeper(), spawner.sleeper()
    launcher = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert launcher.stdout
    child = int(launcher.stdout.readline())
    register(monitor, holder.pid, "m", address)
    refuse(monitor, launcher.pid, "m", address)
    refuse(monitor, other.pid, "m", address)
    holder.kill()
    eventually(lambda: not monitor.backends())
    register(monitor, child, "m", address)
    assert [each["pid"] for each in refused(monitor)] == [other.pid]


def test_repeated_refusal_is_listed_once(monitor: Monitor, spawner: Spawner) -> None:
    """A host tries again and again; the last address and reason of a model count."""
    pid = spawner.sleeper().pid
    refuse(monitor, pid, "first")
    for address in ("one", "two", "two"):
        refuse(monitor, pid, "m", address)
    listed = [(each["model"], each["address"]) for each in refused(monitor)]
    assert listed == [("first", "nowhere"), ("m", "two")]


def test_oldest_refusals_are_dropped(spawner: Spawner) -> None:
    """At most 100 are kept. Processes that have ended take no place."""
    refusals = Refusals()
    ended, runs = spawner.sleeper(), spawner.sleeper()
    for number in range(MAX_REFUSALS - 1):
        refusals.add(f"ended-{number}", ended.pid, "a", "no")
    refusals.add("first", runs.pid, "a", "no")
    subprocess.run(["kill", "-9", str(ended.pid)], check=True)
    ended.wait()
    for number in range(MAX_REFUSALS - 1):
        refusals.add(str(number), runs.pid, "a", "no")
        assert len(refusals._refusals) <= MAX_REFUSALS
    assert [each.model for each in refusals.running()][:2] == ["first", "0"]
    refusals.add("last", runs.pid, "a", "no")
    models = [each.model for each in refusals.running()]
    assert (len(models), models[0], models[-1]) == (MAX_REFUSALS, "0", "last")


def test_refusals_are_kept_without_free_descriptors(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the processes run is then unknown."""
    refusals, pid = Refusals(), spawner.sleeper().pid
    refusals.add("m", pid, "a", "no")
    with monkeypatch.context() as patch:
        refuse_descriptors(patch, os, "open")
        assert [each.model for each in refusals.running()] == ["m"]
        refusals.add("n", pid, "a", "no")  # nothing can be read of the process
    assert [each.model for each in refusals.running()] == ["m"]
