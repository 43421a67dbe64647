"""Backends start, end, hang and are read in any order; the monitor agrees with a plain model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from monitor_plugin import (
    Backend,
    BackendExit,
    InvalidBackend,
    ModelNotLoaded,
    Monitor,
    Reading,
    Settings,
    hookimpl,
)

from ..support import Spawner, eventually, is_running, listening_descriptors

MODELS = st.sampled_from(["llama", "org/model v2", "模型"])
# Each process serves at the first three addresses; no process at the others.
ADDRESSES = st.integers(0, 4)
# Exits with the code that it reads, or by a signal.
LIGHT = ["sh", "-c", "read code; exit $code"]


class Log:
    """A plugin that records the calls of its hooks."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, int]] = []
        self.gone: list[tuple[int, str, int | None, int | None]] = []

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self.registered.append((backend.model, backend.pid))

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.gone.append((backend.pid, exit.cause, exit.exit_code, exit.signal))


class Machine(RuleBasedStateMachine):
    """A monitor, a host with light processes, and a model of what the monitor should know."""

    served: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        self.addresses = [*self.served, "127.0.0.1:1", "127.0.0.1:2"]
        self.held = [number for each in self.served for number in listening_descriptors(each)]
        self.log = Log()
        quick = Settings(
            listen=None,
            respawn_watch_seconds=0,
            status_timeout_seconds=30.0,
            hook_timeout_seconds=30.0,
        )
        self.monitor = Monitor(quick, [self.log])
        self.monitor.start()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        # Holds the sockets, too: a shutdown requires that no process but a backend serves.
        self.keeper = self.start()
        self.monitor.hook.monitor_backend_spawned(
            model="keeper", pid=self.keeper, address="127.0.0.1:3"
        )
        self.log.registered.clear()
        # By PID, in the order of registration: model and index of the address.
        self.live: dict[int, tuple[str, int]] = {}
        self.hung: set[int] = set()
        self.registered: list[tuple[str, int]] = []
        self.gone: list[tuple[int, str, int | None, int | None]] = []
        self.last_ends: dict[str, set[str]] = {}

    def teardown(self) -> None:
        self.monitor.close()
        for process in self.processes.values():
            process.kill()
            process.wait(60)
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def start(self) -> int:
        process = subprocess.Popen(
            LIGHT, stdin=subprocess.PIPE, text=True, start_new_session=True, pass_fds=self.held
        )
        self.processes[process.pid] = process
        return process.pid

    def pick(self, number: int) -> int:
        return list(self.live)[number % len(self.live)]

    def register(self, pid: int, model: str, address: int) -> None:
        """Register or update a backend, and record the expected result in the model."""
        taken = any(at == address for other, (_, at) in self.live.items() if other != pid)
        with pytest.raises(InvalidBackend) if taken else contextlib.nullcontext():
            self.monitor.hook.monitor_backend_spawned(
                model=model, pid=pid, address=self.addresses[address]
            )
        if not taken and self.live.get(pid) != (model, address):
            self.live.pop(pid, None)
            self.live[pid] = (model, address)
            self.registered.append((model, pid))

    def ended(self, pids: Sequence[int], cause: str, code: int | None, by: int | None) -> None:
        """Record exits in the model, when the processes have ended."""
        words = {
            "shutdown": "was stopped by a shutdown",
            "exited": f"exited with code {code}",
            "killed": f"was killed by SIG{'KILL' if by == signal.SIGKILL else 'TERM'}",
        }[cause]
        ends: dict[str, set[str]] = {}
        for pid in pids:
            eventually(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
            model, _ = self.live.pop(pid)
            self.hung.discard(pid)
            ends.setdefault(model, set()).add(f"its process {pid} {words}")
            self.gone.append((pid, cause, code, by))
        self.last_ends.update(ends)

    @rule(model=MODELS, address=ADDRESSES)
    def spawn(self, model: str, address: int) -> None:
        pid = self.start()
        self.register(pid, model, address)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9), model=MODELS, address=ADDRESSES)
    def update(self, number: int, model: str, address: int) -> None:
        self.register(self.pick(number), model, address)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9), by=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def kill(self, number: int, by: signal.Signals) -> None:
        pid = self.pick(number)
        os.kill(pid, by)
        os.kill(pid, signal.SIGCONT)
        self.ended([pid], "killed", None, by)

    @precondition(lambda self: set(self.live) - self.hung)
    @rule(number=st.integers(0, 9), code=st.sampled_from([0, 3]))
    def exit(self, number: int, code: int) -> None:
        awake = [pid for pid in self.live if pid not in self.hung]
        pid = awake[number % len(awake)]
        stdin = self.processes[pid].stdin
        assert stdin
        stdin.write(f"{code}\n")
        stdin.flush()
        self.ended([pid], "exited", code, None)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9))
    def hang(self, number: int) -> None:
        pid = self.pick(number)
        os.kill(pid, signal.SIGSTOP)
        self.hung.add(pid)

    @precondition(lambda self: self.hung)
    @rule()
    def go_on(self) -> None:
        pid = self.hung.pop()
        os.kill(pid, signal.SIGCONT)

    @precondition(lambda self: self.gone or self.live)
    @rule(
        number=st.integers(0, 99),
        model=MODELS,
        code=st.sampled_from([None, 0, 3, -9, 17]),
        reap=st.booleans(),
    )
    def say_exited(self, number: int, model: str, code: int | None, reap: bool) -> None:
        """Report an exit late, twice, wrongly, or of a running process: it changes nothing."""
        known = [pid for pid, *_ in self.gone] + list(self.live)
        pid = known[number % len(known)]
        if reap and pid not in self.live:
            self.processes[pid].wait(60)
        self.monitor.hook.monitor_backend_exited(model=model, pid=pid, exit_code=code)

    @rule(model=MODELS)
    def read(self, model: str) -> None:
        held = [(pid, at) for pid, (named, at) in self.live.items() if named == model]
        if not held:
            self.is_not_loaded(model, lambda: self.monitor.read(model))
            return
        reading = self.monitor.read(model)
        self.agrees_with(reading, held)
        assert reading.replicas == len(held)
        pid, at = held[0]
        self.agrees_with(self.monitor.read(model, pid), [(pid, at)])

    def agrees_with(self, reading: Reading, held: Sequence[tuple[int, int]]) -> None:
        """Compare a reading with the expected one of the backends' addresses, served or not."""
        pid, address = held[-1]
        assert (reading.backend.pid, reading.backend.address) == (pid, self.addresses[address])
        served = [at < 3 for _, at in held]
        assert reading.rpc_error == (None if all(served) else "UNAVAILABLE")
        if any(served):
            assert (reading.source, reading.status.state) == ("grpc", 2)  # type: ignore[union-attr]
        else:
            assert reading.source == "psutil"
            assert reading.sample is not None

    @rule(model=MODELS, force=st.booleans())
    def shutdown(self, model: str, force: bool) -> None:
        pids = [pid for pid, (named, _) in self.live.items() if named == model]
        if not pids:
            self.is_not_loaded(model, lambda: self.monitor.shutdown(model, force))
            return
        self.monitor.shutdown(model, force)
        assert not any(is_running(pid) for pid in pids)
        self.ended(pids, "shutdown", None, signal.SIGTERM)

    def is_not_loaded(self, model: str, ask: object) -> None:
        assert callable(ask)
        with pytest.raises(ModelNotLoaded) as raised:
            ask()
        words = self.last_ends.get(model)
        if words is None:
            assert str(raised.value) == f"model {model!r} is not loaded"
        else:
            assert any(each in str(raised.value) for each in words)

    @rule(model=MODELS, number=st.integers(0, 99), address=ADDRESSES)
    def register_badly(self, model: str, number: int, address: int) -> None:
        """Register a process that has ended or may not be watched, which must be refused."""
        bad = [0, 1, os.getpid()] + [pid for pid, *_ in self.gone]
        with pytest.raises(InvalidBackend):
            self.monitor.hook.monitor_backend_spawned(
                model=model, pid=bad[number % len(bad)], address=self.addresses[address]
            )

    def listed(self) -> list[tuple[str, int, str]]:
        return [
            (each.model, each.pid, each.address)
            for each in self.monitor.backends()
            if each.pid != self.keeper
        ]

    @invariant()
    def agrees(self) -> None:
        expected = [
            (model, pid, self.addresses[address]) for pid, (model, address) in self.live.items()
        ]
        eventually(lambda: len(self.listed()) <= len(expected))
        assert self.listed() == expected
        assert self.log.registered == self.registered
        eventually(lambda: len(self.log.gone) >= len(self.gone))
        assert sorted(self.log.gone) == sorted(self.gone)
        assert all(is_running(pid) for pid in self.live)


@pytest.mark.slow
def test_monitor_agrees_with_a_model(spawner: Spawner) -> None:
    """After any events in any order, the monitor's answers and exits are those of the model."""
    addresses = [spawner.serve_here() for _ in range(3)]

    class Here(Machine):
        served = addresses

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
