"""Nodes of real supervisords and circus, whose states agree with the monitors at every step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ...support import LIGHT_BACKEND, Answer, Spawner, eventually, free_port
from ..circus_host import CircusHost, backend_command
from ..supervisord_host import Host, program
from .conftest import NatsServer

pytestmark = [pytest.mark.once, pytest.mark.slow]


@pytest.fixture
def hosts(nats: NatsServer, tmp_path: Path) -> Iterator[list[Host]]:
    """The supervisords of the nodes `a`, which has no programs, and `b`."""
    manual = "autostart=false"
    dies = tmp_path / "dies.sh"
    dies.write_text("echo the last words >&2; exit 3")
    programs = [
        program("m", f"{LIGHT_BACKEND} --addr 127.0.0.1:{free_port()}", manual),
        program(
            "dies", f"sh {dies} --addr 127.0.0.1:{free_port()}", manual, "startsecs=1",
            "startretries=0",
        ),
    ]  # fmt: skip
    started = []
    try:
        for name, sections in (("a", ""), ("b", "\n".join(programs))):
            flags = f"--cluster {nats.url} --node {name}"
            started.append(Host(tmp_path / name, sections, flags=flags).start())
        yield started
    finally:
        for each in started:
            each.close()


def ask(host: Host | CircusHost, path: str, model: str) -> Answer:
    """Load, restart or stop a model."""
    return host.client.request("POST", f"/backend/{path}", {"model": model}, timeout=180)


def listed(host: Host | CircusHost) -> Any:
    """Return the list of a node; None until it lists both nodes."""
    try:
        answer = host.client.request("GET", "/backends").json
    except OSError:
        return None
    nodes = {each["node"] for each in answer["nodes"] if each["error"] is None}
    return answer if nodes == {"a", "b"} else None


def states(host: Host) -> dict[str, str]:
    """Return the state of each model of node b: `loaded` if it has a backend."""
    answer = eventually(lambda: listed(host))
    found = {each["model"]: each["state"] for each in answer["models"] if each["node"] == "b"}
    return found | {each["model"]: "loaded" for each in answer["backends"] if each["node"] == "b"}


def has_states(host: Host, **expected: str) -> bool:
    """Whether a node lists exactly these models of node b in these states."""
    return states(host) == expected


def test_any_node_starts_restarts_and_stops_programs_of_another(hosts: list[Host]) -> None:
    """Two nodes that get a load at the same time start one process."""
    a, b = hosts
    for host in hosts:
        eventually(partial(has_states, host, m="stopped", dies="stopped"))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda host: ask(host, "load", "m"), hosts))
    for answer in answers:
        assert (answer.status, answer.json["loaded"]) == (200, ["m"]), answer.json
        assert answer.headers["X-Monitor-Node"] == "b"
    first = b.pid("m")
    assert b.state("m") == "RUNNING"
    assert states(a)["m"] == "loaded"
    assert [each["pid"] for each in b.hook_calls("registered")] == [first]
    assert ask(a, "restart", "m").status == 200
    assert b.state("m") == "RUNNING"
    assert b.pid("m") != first
    assert ask(a, "shutdown", "m").status == 200
    assert b.state("m") == "STOPPED"
    eventually(lambda: states(a)["m"] == "stopped")


def test_a_program_that_dies_at_once_is_explained_to_the_admin_of_another_node(
    hosts: list[Host],
) -> None:
    """The answer has its last words, and the monitors' logs have not."""
    a, b = hosts
    eventually(partial(has_states, a, m="stopped", dies="stopped"))
    answer = ask(a, "load", "dies")
    assert (answer.status, answer.json["error"]["type"]) == (500, "start_failed")
    assert answer.json["message"].endswith("the last words")
    assert b.state("dies") == "FATAL"
    eventually(lambda: states(a)["dies"] == "failed")
    for host in hosts:
        assert "the last words" not in host.monitor_log


def test_a_node_of_supervisord_starts_restarts_and_stops_a_watcher_of_circus(
    nats: NatsServer, spawner: Spawner, tmp_path: Path
) -> None:
    """`circusctl` says the same as the other node."""
    watcher = {"cmd": backend_command(addr="unix:FOLDER/w"), "autostart": False}
    a = Host(tmp_path / "a", "", flags=f"--cluster {nats.url} --node a").start()
    b = CircusHost(spawner, {"w": watcher}, cluster=nats.url, node="b")

    def agree(state: str, status: str) -> bool:
        if not (listed(a) and listed(b)):
            return False
        return states(a).get("w") == state and b.control("status", "w").strip() == status

    try:
        eventually(lambda: agree("stopped", "stopped"))
        with ThreadPoolExecutor(2) as pool:
            for answer in pool.map(lambda host: ask(host, "load", "w"), (a, b)):
                assert (answer.status, answer.json["loaded"]) == (200, ["w"]), answer.json
                assert answer.headers["X-Monitor-Node"] == "b"
        assert agree("loaded", "active")
        first = b.pids("w")
        assert len(first) == 1
        assert ask(a, "restart", "w").status == 200
        assert agree("loaded", "active")
        assert b.pids("w") != first
        assert ask(a, "shutdown", "w").status == 200
        assert b.pids("w") == []
        eventually(lambda: agree("stopped", "stopped"))
    finally:
        a.close()
        b.close()
