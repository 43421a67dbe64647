"""What a start waits for, and why it fails, with real processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import InvalidBackend, KnownModel, Monitor, StartFailed, State, hookimpl
from monitor_plugin.operations import known_models, starter
from monitor_plugin.testing import BackendFactory

from ..support import Spawner, eventually, is_running, register, suspend
from .support import EmbeddedHost, ListingHost


@pytest.fixture
def host(spawner: Spawner) -> EmbeddedHost:
    return EmbeddedHost(spawner)


@pytest.fixture
def listing_host(spawner: Spawner) -> ListingHost:
    return ListingHost(spawner)


def why_not(monitor: Monitor, model: str = "m", seconds: float = 60.0) -> str:
    """Start a model, which must fail, and return the reason."""
    with pytest.raises(StartFailed) as caught:
        monitor.start_model(model, seconds)
    assert str(caught.value) == f"model {model!r} could not be started: {caught.value.reason}"
    return caught.value.reason


def exits(code: int) -> tuple[str, ...]:
    """Return the command of a process that is registered before it exits with a code."""
    return (sys.executable, "-c", f"import time; time.sleep(0.5); raise SystemExit({code})")


def test_start_waits_until_a_backend_is_ready(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], backend: BackendFactory
) -> None:
    """A real backend that was registered during the call of the hook, and answered later."""
    monitor = make_monitor([host])
    host.programs["m"] = lambda: backend().register(monitor, "m")
    monitor.start_model("m")
    assert monitor._services.registry.records("m")[0].state is State.READY


def test_loaded_model_is_not_started(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], backend: BackendFactory
) -> None:
    """A backend that hangs now, and was READY before, is loaded: the answer is immediate."""
    monitor = make_monitor([host])
    host.programs["m"] = lambda: None
    process = backend()
    process.register(monitor, "m")
    monitor.start_model("m")
    suspend(process.pid)
    began = time.monotonic()
    monitor.start_model("m")
    assert time.monotonic() - began < 20  # the time limit of `Status` is 30 s
    assert host.calls == []


def test_model_that_was_listed_before_its_start_is_not_started_twice(
    listing_host: ListingHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list from before the registration says `stopped`; also if the host cannot list now."""
    monkeypatch.setattr(known_models, "_MAX_AGE_SECONDS", 3600.0)
    host = listing_host
    monitor = make_monitor([host, host.answers()])
    host.states["m"] = KnownModel("m", "stopped", can_start=True)
    assert monitor.known_models()

    def start() -> None:
        host.process_of("m")
        host.states["m"] = KnownModel("m", "running", can_start=True)

    host.programs["m"] = start
    monitor.start_model("m")
    monitor.start_model("m")
    host.list_error = RuntimeError("the host is busy")
    host.process_of("m")
    monitor.start_model("m")
    assert host.calls == ["m"]


def test_model_of_two_hosts_is_not_started_twice(
    listing_host: ListingHost, make_monitor: Callable[..., Monitor]
) -> None:
    """One host has the model, and another one lists it as stopped."""

    class OtherHost:
        @hookimpl
        def monitor_list_models(self) -> Sequence[KnownModel]:
            return [KnownModel("m", "stopped")]

    host = listing_host
    monitor = make_monitor([host, host.answers(), OtherHost()])
    host.states["m"] = KnownModel("m", "running", can_start=True)
    host.programs["m"] = lambda: host.process_of("m")
    monitor.start_model("m")
    monitor.start_model("m")
    assert host.calls == ["m"]


def test_model_that_its_host_is_stopping_is_started_again(
    listing_host: ListingHost, make_monitor: Callable[..., Monitor]
) -> None:
    """Its backend is ready until it ends. So the answer waits for the host, which starts another.

    A backend that the host only left behind stays.
    """
    host = listing_host
    monitor = make_monitor([host, host.answers()])
    process = host.process_of("m")
    monitor.start_model("m")
    assert host.calls == []
    host.states["m"] = KnownModel("m", "stopped", "it is being stopped", can_start=True)
    eventually(lambda: monitor.known_models())

    def start_another() -> None:
        process.kill()
        process.wait()
        host.process_of("m")

    host.programs["m"] = start_another
    monitor.start_model("m")
    assert host.calls == ["m"]
    (backend,) = eventually(lambda: each if len(each := monitor.backends()) == 1 else [])
    assert is_running(backend.pid)
    host.programs["m"] = lambda: None
    monitor.start_model("m")
    assert host.calls == ["m", "m"]
    assert monitor.backends() == [backend]


@pytest.mark.parametrize("switches", [{"no_status": True}, {"state": 1}])
def test_model_without_status_is_loaded_once_it_answers(
    switches: dict[str, Any],
    host: EmbeddedHost,
    make_monitor: Callable[..., Monitor],
    backend: BackendFactory,
) -> None:
    """UNIMPLEMENTED is an answer; a BUSY backend was READY before."""
    monitor = make_monitor([host])
    host.programs["m"] = lambda: backend(**switches).register(monitor, "m")
    monitor.start_model("m")


def test_model_is_loaded_although_its_host_still_blocks(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """A host may return late, for example if it waits for the backend itself."""
    monitor = make_monitor([host, host.answers()])
    host.programs["m"] = lambda: None
    host.may_start.clear()
    threads = [threading.Thread(target=monitor.start_model, args=("m",))]
    threads[0].start()
    eventually(lambda: host.calls)
    host.process_of("m")
    threads[0].join(60)
    assert not threads[0].is_alive()
    host.may_start.set()


def test_backend_may_be_registered_late(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier end of a backend of the model is no reason to give up."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monitor = make_monitor([host, host.answers()], respawn_watch_seconds=0.0)
    host.programs["m"] = lambda: threading.Timer(1.0, host.process_of, ["m"]).start()
    host.process_of("m")
    monitor.shutdown("m")
    monitor.start_model("m")
    assert monitor.backends()


def test_dead_backend_that_is_still_registered_is_started(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is asked when its end is noticed."""
    monitor = make_monitor([host, host.answers()])
    host.programs["m"] = lambda: host.process_of("m")
    process = host.process_of("m")
    monitor.start_model("m")
    process.kill()
    process.wait()
    monitor.start_model("m")
    assert host.calls == ["m"]
    assert [is_running(each.pid) for each in monitor.backends()] == [True]


def test_unknown_model_cannot_be_started(
    host: EmbeddedHost, listing_host: ListingHost, make_monitor: Callable[..., Monitor]
) -> None:
    """No host knows the model, or a host lists the model and does not start it."""
    assert why_not(make_monitor()) == "no host of this monitor knows how to start it"
    monitor = make_monitor([host, listing_host])
    register(monitor, host.spawner.process(*exits(3)).pid)
    eventually(lambda: not monitor.backends())
    reason = why_not(monitor)
    assert reason.startswith("no host of this monitor knows how to start it; its process ")
    listing_host.states["m"] = KnownModel("m", "failed", "exited too quickly", can_start=False)
    eventually(lambda: monitor.known_models())
    assert why_not(monitor).startswith(
        "its host lists it, and does not start it; its host says failed (exited too quickly); "
    )


class Hook:
    """A plugin whose start does what it is told."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    @hookimpl
    def monitor_start_model(self, model: str) -> bool | None:
        result: bool | None = self._function()
        return result


def fail_to_start() -> None:
    raise StartFailed("m", "the disk is full")


def test_host_that_fails_is_named(make_monitor: Callable[..., Monitor]) -> None:
    """The error has the host's reason, or what its hook did wrong; the log has the rest."""
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: False, "its host could not start it"),
        (fail_to_start, "the disk is full"),
        (lambda: "yes", "monitor_start_model returned str, and should return True, False or None"),
        (lambda: int("x"), "monitor_start_model raised ValueError; the log says more"),
    ]
    for function, reason in cases:
        monitor = make_monitor()
        monitor.plugin_manager.register(Hook(function), "the-host")
        assert reason in why_not(monitor)
        assert why_not(monitor).startswith("plugin 'the-host': ")


def test_failing_hook_leaves_the_start_to_the_next_one(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """The error of the first hook is logged, as for any hook."""
    monitor = make_monitor([host, host.answers(), Hook(lambda: "yes")])
    host.programs["m"] = lambda: host.process_of("m")
    monitor.start_model("m")


def test_host_that_does_not_return_fails_the_start(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """Until the hook has returned, another start of the model fails immediately, and says why.

    Other models can be started.
    """
    monitor = make_monitor([host, host.answers()])
    may_return = threading.Event()
    host.programs["m"] = lambda: may_return.wait(60)
    host.programs["n"] = lambda: host.process_of("n")
    assert why_not(monitor, seconds=0.2) == (
        "no backend of it was registered within 0.2 s; "
        "its host has not returned from monitor_start_model"
    )
    assert "an earlier call of it is not back yet" in why_not(monitor)
    monitor.start_model("n")
    may_return.set()
    host.programs["m"] = lambda: host.process_of("m")

    def starts() -> bool:
        try:
            monitor.start_model("m")
        except StartFailed:
            return False
        return True

    eventually(starts)


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"state": 0}, "is UNINITIALIZED within 0.5 s"),
        ({"hang_status": True}, "has not answered within 0.5 s"),
        ({"state": -1}, "reports the state ERROR"),
    ],
)
def test_backend_that_is_never_ready_fails_the_start(
    switches: dict[str, Any], reason: str, host: EmbeddedHost,
    make_monitor: Callable[..., Monitor], backend: BackendFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The reason names its process and its last state; the process goes on."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monitor = make_monitor([host], start_timeout_seconds=0.5)
    process = backend(**switches)
    host.programs["m"] = lambda: process.register(monitor, "m")
    if switches == {"state": 0}:  # so that its state is known within the time limit
        process.register(monitor, "m")
        monitor.read("m")
    seconds = 60.0 if switches == {"state": -1} else 0.5
    assert why_not(monitor, seconds=seconds) == f"its backend (process {process.pid}) {reason}"
    assert is_running(process.pid)


def test_process_that_dies_at_once_fails_the_start(
    host: EmbeddedHost, listing_host: ListingHost, make_monitor: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The reason is how it ended, and what the host says of it where it lists its models."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monitor = make_monitor([host, listing_host])
    host.programs["m"] = lambda: host.process_of("m", *exits(3))
    assert "exited" in why_not(monitor)
    listing_host.states["n"] = KnownModel("n", "failed", "gave up", can_start=True)
    listing_host.programs["n"] = lambda: listing_host.process_of("n", *exits(4))
    eventually(monitor.known_models)  # the list before may be a second old
    reason = why_not(monitor, "n")
    assert reason.startswith("its host says failed (gave up); its process ")
    assert "exited" in reason


def test_model_that_its_host_restarts_is_waited_for(
    listing_host: ListingHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start waits while the host says `waiting`, also longer than a model may be at rest."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monitor = make_monitor([listing_host, listing_host.answers()])
    listing_host.states["m"] = KnownModel("m", "waiting", "in 4 s", can_start=True)
    later = threading.Timer(1.0, listing_host.process_of, ["m"])
    listing_host.programs["m"] = later.start
    monitor.start_model("m")


@pytest.mark.parametrize("state", ["waiting", "running", None])
def test_processes_that_end_again_and_again_fail_the_start(
    host: EmbeddedHost, listing_host: ListingHost, make_monitor: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch, state: str | None,
) -> None:  # fmt: skip
    """Whatever the host says of the model, also if it lists none: it starts the next one itself."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 60.0)
    if state:
        host = listing_host
        listing_host.states["m"] = KnownModel("m", state, can_start=True)
    monitor = make_monitor([host, host.answers()])
    host.loads_forever.add("m")
    is_over = threading.Event()

    def crash() -> None:
        while not is_over.is_set():
            host.process_of("m").kill()
            eventually(lambda: not monitor._services.registry.records("m"))

    loop = threading.Thread(target=crash)
    host.programs["m"] = loop.start
    try:
        reason = why_not(monitor, seconds=300.0)
    finally:
        is_over.set()
        loop.join()
    assert reason.startswith("its processes end again and again; its process ")
    assert "killed by SIGKILL" in reason


def test_replica_that_loads_is_waited_for_beside_one_that_crashes(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    monitor = make_monitor([host, host.answers()])
    host.loads_forever.add("m")

    def crash() -> None:
        for _ in range(starter._MAX_ENDS + 1):
            host.process_of("m").kill()
            eventually(lambda: len(monitor._services.registry.records("m")) == 1)
        host.loads_forever.clear()

    def start() -> None:
        host.process_of("m")
        threading.Thread(target=crash).start()

    host.programs["m"] = start
    monitor.start_model("m", 300.0)


class _Crashing(ListingHost):
    """Its processes end before they are registered: now and then it says that one is starting."""

    def __init__(self, spawner: Spawner, at_rest: str) -> None:
        super().__init__(spawner)
        self.programs["m"] = lambda: None
        self.said: Iterator[str] = itertools.cycle([at_rest] * 4 + ["starting"])

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        return [KnownModel("m", next(self.said), "code 7", can_start=True)]


@pytest.mark.parametrize("state", ["waiting", "exited"])
def test_processes_that_end_before_their_registration_fail_the_start(
    spawner: Spawner, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:  # fmt: skip
    """The model is never at rest for long. The first of two limits ends the start."""
    monkeypatch.setattr(known_models, "_MAX_AGE_SECONDS", 0.0)
    monitor = make_monitor([_Crashing(spawner, state)])
    monkeypatch.setattr(starter, "_MAX_PAUSE_SECONDS", 1e9)
    assert why_not(monitor, seconds=300.0) == "its processes end again and again"
    monkeypatch.setattr(starter, "_MAX_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(starter, "_MAX_ENDS", 10**9)
    reason = why_not(monitor, seconds=300.0)
    assert reason.startswith("no process of it ran for 1 s since the start began; its host says ")


def test_host_that_does_nothing_fails_the_start(
    host: EmbeddedHost, listing_host: ListingHost, make_monitor: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The time limit ends the start, or earlier the host, which says that the model is stopped."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monitor = make_monitor([host, listing_host])
    host.programs["m"] = listing_host.programs["n"] = lambda: None
    assert why_not(monitor, seconds=2.0) == "no backend of it was registered within 2 s"
    listing_host.states["n"] = KnownModel("n", "stopped", can_start=True)
    eventually(monitor.known_models)
    assert why_not(monitor, "n") == "its host says stopped"
    listing_host.states["n"] = KnownModel("n", "running", can_start=True)
    eventually(lambda: monitor.known_models()[0].state == "running")
    assert why_not(monitor, "n", seconds=2.0) == (
        "no backend of it was registered within 2 s; its host says running"
    )


def test_refused_registration_is_named(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], backend: BackendFactory
) -> None:
    """The reason may be that a backend of another model has the address."""
    monitor = make_monitor([host])
    other = backend()
    other.register(monitor, "other")
    process = host.spawner.sleeper()

    def start() -> None:
        monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address=other.address)

    host.programs["m"] = start
    reason = why_not(monitor)
    assert "plugin 'EmbeddedHost': the backend was not registered: address" in reason
    later = threading.Thread(target=pytest.raises, args=(InvalidBackend, start))
    host.programs["m"] = later.start
    reason = why_not(monitor, seconds=0.5)
    assert f"process {process.pid} was not registered: " in reason


def test_process_that_serves_the_address_is_named(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], backend: BackendFactory
) -> None:
    """The server of an earlier process answers, and its answers are not believed."""
    monitor = make_monitor([host])
    earlier = backend()
    process = host.spawner.sleeper()
    host.programs["m"] = lambda: register(monitor, process.pid, "m", earlier.address)
    reason = why_not(monitor, seconds=3.0)
    assert f"its address is served by process {earlier.pid}" in reason


def test_start_beside_processes_that_were_left_behind(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """Such processes do not keep the model from being started; a shutdown stops them too."""
    monitor = make_monitor([host, host.answers()], respawn_watch_seconds=0.0)
    launcher = host.spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert launcher.stdout
    child = int(launcher.stdout.readline())
    register(monitor, launcher.pid, "m", "unix:/launcher")
    monitor.start_model("m")
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    eventually(lambda: not monitor.backends())
    host.programs["m"] = lambda: host.process_of("m")
    monitor.start_model("m")
    assert is_running(child)
    monitor.shutdown("m")
    assert not is_running(child)


def test_failing_list_of_models_does_not_fail_the_start(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """One hook raises an error, and another hook does not return."""
    may_end = threading.Event()

    class Raises:
        @hookimpl
        def monitor_list_models(self) -> Sequence[KnownModel]:
            raise RuntimeError("the host is away")

    class Hangs:
        @hookimpl
        def monitor_list_models(self) -> Sequence[KnownModel]:
            may_end.wait(60)
            return []

    monitor = make_monitor([host, host.answers(), Raises(), Hangs()], hook_timeout_seconds=0.5)
    host.programs["m"] = lambda: host.process_of("m")
    monitor.start_model("m")
    may_end.set()


def test_error_has_the_last_output(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not have it, because the log and clients without the role admin get that."""
    monitor = make_monitor([host])
    monkeypatch.setattr(
        monitor._services.operations._starter,
        "_read_output",
        lambda model, _: f"{model}: no weights",
    )
    host.programs["m"] = lambda: None
    with pytest.raises(StartFailed) as caught:
        monitor.start_model("m", 0.1)
    assert caught.value.last_output == "m: no weights"
    assert "weights" not in str(caught.value)


def test_error_has_the_last_output_that_the_host_gives(
    make_monitor: Callable[..., Monitor],
) -> None:
    """Escaped and cut like any other; a host may know it of a process that was not registered."""

    class Host:
        @hookimpl
        def monitor_start_model(self, model: str) -> None:
            raise StartFailed(
                model, "it exited", "cut\n" + "line\n" * 19 + "\x1b[31mno \x07weights"
            )

    with pytest.raises(StartFailed) as caught:
        make_monitor([Host()]).start_model("m")
    assert caught.value.last_output == "line\n" * 19 + "no \\x07weights"


def test_wait_for_a_start_sees_where_the_process_writes_now(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], tmp_path: Path
) -> None:
    """A shell that redirects its output does so after its registration, and may die at once."""
    monitor = make_monitor([host])
    script = f"read -r _; exec 2>{tmp_path}/log; echo no weights >&2; echo; read -r _"
    process = host.spawner.process("bash", "-c", script, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    host.register("m", process, "unix:/none")
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline()
    model_starter = monitor._services.operations._starter
    model_starter._read("m")
    process.kill()
    eventually(lambda: not monitor.backends())
    assert model_starter._read_output("m", 0) == "no weights"


def test_start_is_not_ended_by_an_old_list_of_models(
    listing_host: ListingHost, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host under load may fail to list its models; the last list says `stopped` then."""
    monkeypatch.setattr(starter, "_REST_SECONDS", 0.1)
    monkeypatch.setattr(known_models, "_MAX_AGE_SECONDS", 0.0)
    host = listing_host
    monitor = make_monitor([host, host.answers()])
    host.states["m"] = KnownModel("m", "stopped", can_start=True)
    assert monitor.known_models()
    later = threading.Timer(1.0, host.process_of, ["m"])

    def start() -> None:
        host.list_error = RuntimeError("the host is busy")
        later.start()

    host.programs["m"] = start
    monitor.start_model("m")
    assert monitor.known_models() == [host.states["m"]]
