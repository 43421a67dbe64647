"""Two nodes, each with a real supervisord; its state agrees with the monitors at every step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ...support import Answer, eventually, free_port
from ..supervisord_host import BACKEND, Host, program
from .conftest import NatsServer

pytestmark = [pytest.mark.once, pytest.mark.slow]


@pytest.fixture
def hosts(nats: NatsServer, tmp_path: Path) -> Iterator[list[Host]]:
    """The supervisords of the nodes `a`, which has no programs, and `b`."""
    manual = "autostart=false"
    dies = tmp_path / "dies.sh"
    dies.write_text("echo the last words >&2; exit 3")
    programs = [
        program("m", f"{BACKEND} --addr 127.0.0.1:{free_port()}", manual),
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


def ask(host: Host, path: str, model: str) -> Answer:
    """Load, restart or stop a model."""
    return host.client.request("POST", f"/backend/{path}", {"model": model}, timeout=180)


def listed(host: Host) -> Any:
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
    """Two nodes that are asked at once start one process."""
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
