"""Containers are registered and stopped in place of their client, with a stand-in for the engine.

The processes and the control groups are real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monitor_plugin import Backend, ShutdownFailed, hookimpl
from monitor_plugin.hosts.supervisord.adapter import Adapter
from monitor_plugin.processes.control_group_files import read_mounts
from monitor_plugin.processes.process_table import read_row

from ..integration.supervisord_host import Host, program
from ..support import Spawner, eventually, free_port, is_running, logged, register
from .conftest import Hooked, MakeHooked
from .container_engine import ContainerEngine

pytestmark = pytest.mark.slow

SLEEP = ("image", "sleep", "1000")
# Starts processes that no longer belong to its tree.
WITH_DAEMONS = ("image", "sh", "-c", "(setsid sleep 999 & setsid sleep 999 &); exec sleep 999")
DEAF = ("image", "sh", "-c", "trap '' TERM; while :; do sleep 1000; done")
SETTINGS = {"stop_timeout_seconds": 3.0, "respawn_watch_seconds": 0.0}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ContainerEngine]:
    """An engine whose containers have control groups."""
    groups = []
    for mount in read_mounts():
        if not mount.controllers or "memory" in mount.controllers:
            group = Path(mount.folder, f"monitor-plugin-test-{os.getpid()}-{time.monotonic_ns()}")
            try:
                group.mkdir()
            except OSError:
                continue
            groups.append(str(group))
    if not groups:
        pytest.skip("no control group can be made here")
    made = ContainerEngine(tmp_path / "engine", groups)
    yield made
    made.close()


class Run:
    """A client that a host has started and registered, and its monitor."""

    def __init__(
        self, hook: Hooked, engine: ContainerEngine, process: subprocess.Popen[str]
    ) -> None:
        self.monitor = hook.monitor
        self.engine = engine
        self.process = process
        threading.Thread(target=process.wait, daemon=True).start()  # a host reaps its children
        register(self.monitor, process.pid, address=f"127.0.0.1:{free_port()}")

    def registered(self) -> list[int]:
        return [each.pid for each in self.monitor.backends()]

    def await_container(self) -> int:
        """Wait until the only container is registered, and return its main process."""
        (pid,) = self.engine.running()
        eventually(lambda: self.registered() == [pid])
        return pid

    def await_looks(self, count: int) -> None:
        """Wait until the hook has looked for the container so many times more."""
        before = len(self.engine.calls("inspect"))
        eventually(lambda: len(self.engine.calls("inspect")) >= before + count)


MakeRun = Callable[..., Run]


@pytest.fixture
def run(hooked: MakeHooked, engine: ContainerEngine, spawner: Spawner) -> MakeRun:
    """Runs a client as a host does: `run("docker", "run", "--name", "x", "image", ...)`."""

    def start(*command: str, **settings: Any) -> Run:
        options: dict[str, Any] = {"env": engine.environment, "cwd": engine.folder}
        process = spawner.process(*command, **options)
        return Run(hooked("docker_stop", {}, **{**SETTINGS, **settings}), engine, process)

    return start


@pytest.fixture
def module(hooked: MakeHooked) -> ModuleType:
    """The module of the hook."""
    return hooked("docker_stop", {}).module


@pytest.mark.parametrize(
    "command",
    [
        ["docker", "run", "--rm", "--name", "x", *WITH_DAEMONS],
        ["podman", "--log-level", "warn", "container", "run", "-i", "--name=x", *WITH_DAEMONS],
        ["sh", "-c", 'true; docker run --cidfile=id "$@"; true', "sh", *WITH_DAEMONS],
    ],
    ids=["docker", "podman", "behind a shell"],
)
def test_container_is_registered_and_stopped(command: list[str], run: MakeRun) -> None:
    """Its control group is the tree, no end of the client is recorded, and the engine stops it."""
    case = run(*command)
    pid = case.await_container()
    inside = eventually(lambda: each if len(each := case.engine.processes()) == 3 else [])
    (record,) = case.monitor._services.registry.records()
    case.monitor._services.member_table.snapshot(0.0)
    members = [each for each, _ in record.members.identities()]
    assert members[0] == pid
    assert {case.process.pid, *inside} <= set(members)
    assert case.monitor._services.registry.last_exits() == []
    case.monitor.shutdown("m")
    assert not any(map(is_running, members))
    (stop,) = case.engine.calls("stop")
    options = command[1:3] if command[0] == "podman" else []
    assert stop[:-1] == [*options, "stop", "-t", "2"]
    (end,) = case.monitor._services.registry.last_exits()
    assert (end.backend.pid, end.exit.cause) == (pid, "shutdown")


def test_container_that_starts_late_is_registered(run: MakeRun, engine: ContainerEngine) -> None:
    """First its image is pulled. The end of the container is that of the backend."""
    engine.set("hold-pull")
    case = run("docker", "run", "--rm", "--name", "x", *SLEEP)
    case.await_looks(2)
    assert case.registered() == [case.process.pid]
    engine.set("hold-pull", False)
    pid = case.await_container()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: case.registered() == [])
    case.process.wait(60)
    assert [each.backend.pid for each in case.monitor._services.registry.last_exits()] == [pid]


def test_container_of_an_earlier_client_is_not_registered(
    run: MakeRun, engine: ContainerEngine, spawner: Spawner
) -> None:
    """Its name and its file may be used again. It started before the client did."""
    command = ("docker", "run", "--name", "x", "--cidfile", "id", *SLEEP)
    earlier = spawner.process(*command, env=engine.environment, cwd=engine.folder)
    (pid,) = engine.running()
    engine.set("hold-pull")
    case = run(*command)
    case.await_looks(3)
    assert case.registered() == [case.process.pid]
    case.monitor.shutdown("m")
    assert is_running(pid)
    assert engine.calls("stop") == []
    earlier.kill()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-id", "--name", "x"], "`docker run` has --detach"),
        (["--rm", "-e", "A=--name=x"], "`docker run` has neither --cidfile nor --name"),
    ],
)
def test_client_without_a_container_that_can_be_found_stays_registered(
    options: list[str],
    reason: str,
    run: MakeRun,
    engine: ContainerEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says why once."""
    engine.set("hold-pull")
    case = run("docker", "run", *options, *SLEEP)
    (line,) = eventually(lambda: [each for each in caplog.messages if reason in each])
    assert f"model 'm' (process {case.process.pid}): " in line
    assert case.registered() == [case.process.pid]
    assert engine.calls("inspect") == []


def test_last_client_of_a_shell_counts(run: MakeRun, engine: ContainerEngine) -> None:
    """One may only start a container in the background, and another one may fail."""
    script = (
        "docker run -d --name helper image sleep 1000\n"
        "docker run --name helper image sleep 1000\n"
        "exec docker run --name x image sleep 1000"
    )
    engine.set("hold-pull")
    case = run("sh", "-c", script)
    eventually(lambda: engine.calls("-d"))
    engine.set("hold-pull", False)
    (helper,) = engine.running()
    pid = eventually(lambda: set(engine.running(2)) - {helper}).pop()
    eventually(lambda: case.registered() == [pid])


@pytest.mark.once
def test_container_and_client_that_ignore_sigterm_are_killed(
    run: MakeRun, engine: ContainerEngine
) -> None:
    """The container by the engine, and then the client by the monitor."""
    engine.set("deaf-clients")
    case = run("docker", "run", "--name", "x", *DEAF)
    pid = case.await_container()
    case.monitor.shutdown("m")
    assert not is_running(pid)
    assert not is_running(case.process.pid)
    assert len(engine.calls("stop")) == 1


@pytest.mark.once
def test_container_that_the_engine_cannot_stop_is_not_signalled(
    run: MakeRun, engine: ContainerEngine
) -> None:
    """The shutdown fails with the engine's reason, and can be repeated."""
    case = run("docker", "run", "--name", "x", *SLEEP)
    pid = case.await_container()
    for obstacle, reason in (
        ("away", "docker stop: Cannot connect to the Docker daemon at unix:///"),
        ("hang", "docker stop: no answer within 3 s"),
    ):
        engine.set(obstacle)
        with pytest.raises(ShutdownFailed, match=reason):
            case.monitor.shutdown("m")
        engine.set(obstacle, False)
        assert is_running(pid)
        assert is_running(case.process.pid)
    case.monitor.shutdown("m")
    assert not is_running(pid)


@pytest.mark.once
def test_engine_that_fails_is_asked_again(
    run: MakeRun, engine: ContainerEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged once."""
    engine.set("away")
    case = run("docker", "run", "--name", "x", *SLEEP)
    case.await_looks(3)
    engine.set("away", False)
    case.await_container()
    assert len([each for each in logged(caplog) if "Cannot connect" in each]) == 1


def test_call_of_an_engine_that_hangs_ends_with_the_monitor(
    run: MakeRun, engine: ContainerEngine
) -> None:
    """Until then it has a deadline."""
    engine.set("hang")
    case = run("docker", "run", "--name", "x", *SLEEP)
    eventually(lambda: engine.calls("inspect"))
    case.monitor.close()
    eventually(lambda: not _inspecting(engine))


def _inspecting(engine: ContainerEngine) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{engine.folder}/docker\0inspect".encode() in path.read_bytes():
                found.append(int(path.parts[2]))
    return found


def test_container_that_is_always_restarted_stays_stopped(
    run: MakeRun, engine: ContainerEngine
) -> None:
    """Also if the host ends it before, which its own restart policy undoes."""

    class HostHooks:
        @hookimpl
        def monitor_stop_backend(self, backend: Backend) -> None:
            assert engine.calls("stop") == []
            os.kill(backend.pid, signal.SIGKILL)
            restarted.extend(eventually(lambda: set(engine.running()) - {backend.pid}))

    restarted: list[int] = []

    case = run("docker", "run", "--restart=always", "--name", "x", *SLEEP, plugins=[HostHooks()])
    case.await_container()
    case.monitor.shutdown("m")
    assert restarted
    assert engine.processes() == []


@pytest.mark.once
def test_container_is_stopped_after_a_host_that_answers_for_the_backend(
    run: MakeRun, engine: ContainerEngine
) -> None:
    """No hook is called after that of the host, which ends the client alone."""

    class HostHooks:
        @hookimpl
        def monitor_stop_backend(self, backend: Backend) -> bool:
            case.process.kill()
            return True

    case = run("docker", "run", "--name", "x", *DEAF, plugins=[HostHooks()])
    pid = case.await_container()
    case.monitor.shutdown("m")
    assert not is_running(pid)
    assert len(engine.calls("stop")) == 1


@pytest.mark.once
def test_container_is_stopped_before_it_is_registered(
    run: MakeRun, engine: ContainerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host has ended the client by then, so that nothing else shows which container it is."""

    class HostHooks:
        @hookimpl
        def monitor_stop_backend(self, backend: Backend) -> None:
            case.process.kill()
            case.process.wait()

    engine.set("away")
    case = run("docker", "run", "--cidfile", "id", *DEAF, plugins=[HostHooks()])
    (pid,) = engine.running()
    case.await_looks(1)
    hook: Any = sys.modules["monitor_plugin_hooks.docker_stop"]
    monkeypatch.setattr(hook._containers, "_look", lambda key, wait: False)
    engine.set("away", False)
    assert case.registered() == [case.process.pid]
    case.monitor.shutdown("m")
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("docker run --name x image --name y", ("docker", None, "x", False)),
        ("/usr/bin/podman run --name=x -p80:80 -v /a:/b image", ("podman", None, "x", False)),
        ("docker -H unix:///s --tls run -it --rm --cidfile f i", ("docker", "f", None, False)),
        ("sh /opt/docker container run -v a:b -itd i", ("docker", None, None, True)),
        ("docker run --detach=false --sig-proxy=false --name x i", ("docker", None, "x", False)),
        ("docker run --name x --name y -- i", ("docker", None, "y", False)),
        ("docker run", ("docker", None, None, False)),
        ("docker run --name", ("docker", None, None, False)),
        ("sudo docker run --name x image", None),
        ("docker ps run", None),
        ("docker", None),
        ("dockerd run", None),
        ("", None),
    ],
)
def test_command_line_of_a_client_is_parsed(
    arguments: str, expected: tuple[object, ...] | None, module: ModuleType
) -> None:
    """Only the options before the image count."""
    client = module.parse_client((1, 1.0), arguments.split(" "))
    assert (client and client[1:2] + client[3:]) == expected


def test_client_of_another_user_is_not_used(module: ModuleType, spawner: Spawner) -> None:
    """It could name any process, which the monitor would end with its own rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    for user, reason in ((65534, "belongs to user 65534"), (0, None)):
        # The folder of such a process in /proc belongs to root.
        code = (
            "import ctypes, time; ctypes.CDLL(None).prctl(4, 0); print(flush=True); "
            "time.sleep(1000)"
        )
        process = spawner.process("/usr/bin/env", "python3", "-c", code, user=user)
        assert process.stdout
        if not process.stdout.readline():
            pytest.skip("another user cannot run python3")
        client = module.Client((process.pid, 1.0), "docker", ["docker"], None, "x", False)
        assert (client.why_unusable() or "").endswith(
            f"{reason}: run the monitor as that user" if reason else ""
        )


def test_process_of_another_machine_or_namespace_is_not_used(
    module: ModuleType, spawner: Spawner
) -> None:
    """Neither its control group, nor its start time is that of the container."""
    process = spawner.sleeper()
    row = read_row(process.pid)
    assert row
    own = (process.pid, row.started)
    client = module.Client(own, "docker", ["docker"], None, "x", False)
    engine = module.Engine(client, threading.Event())

    def match(**state: object) -> Any:
        facts = {"pid": process.pid, "running": True, **state}
        return engine._match(module._Inspected("ab" * 32, module._State(**facts)), "x")

    now, minute = datetime.now().astimezone(), timedelta(minutes=1)
    assert match(started_at=now) == ("ab" * 32, own)
    assert match(started_at=now - minute) is None
    assert match(started_at=now + 2 * minute) is None
    assert match(started_at=now, running=False) is None
    assert match(started_at=now, pid=0) is None
    assert engine._match(module._Inspected("ab" * 32), "x") is None  # an image


@pytest.mark.once
def test_supervisord_keeps_a_container_stopped_and_starts_it_again(
    hooked: MakeHooked, engine: ContainerEngine, tmp_path: Path
) -> None:
    """The client is stopped first, so that it is not restarted; a crash is one end."""
    address = f'environment=MONITOR_ADDRESS="127.0.0.1:{free_port()}",PATH="{engine.folder}:/bin"'
    command = f"{engine.folder}/docker run --rm --name x image sh -c 'trap \"\" TERM; sleep 1000'"
    options = ("stopwaitsecs=1", f"directory={engine.folder}")
    host = Host(tmp_path / "host", program("m", command, address, *options), monitored=False)
    host.start()
    try:
        host.info("m")
        adapter = Adapter(host.supervisord)
        settings = {**SETTINGS, "respawn_watch_seconds": 1.5}
        monitor = hooked("docker_stop", {}, plugins=[adapter], **settings).monitor

        def registered() -> list[int]:
            adapter.poll_soon()
            return [each.pid for each in monitor.backends()]

        (first,) = engine.running()
        eventually(lambda: registered() == [first])
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not is_running(first))
        second = eventually(lambda: [each for each in engine.running() if each != first])
        eventually(lambda: registered() == second)
        for _ in range(3):
            adapter._poller.wait_for_poll(60)
            assert registered() == second
        ends = [each.backend.pid for each in monitor._services.registry.last_exits()]
        assert ends == [first]
        monitor.shutdown("m")
        assert host.state("m") == "STOPPED"
        assert engine.containers() == []
        assert len(engine.calls("run")) == 2
        host.begin("m")
        (third,) = engine.running()
        eventually(lambda: registered() == [third])
        monitor.shutdown("m")
    finally:
        host.close()
