"""The real circus, with watchers that do not serve themselves, or hide their command lines."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin.processes.address_probe import accepts_connection
from monitor_plugin.processes.sockets import SocketTable

from ..support import OVERWRITE_TITLE, Spawner, eventually, is_running
from .circus_host import CircusHost, backend_command

pytestmark = pytest.mark.slow

# Overwrites its command line, then serves.
TITLED = f"""
{OVERWRITE_TITLE}
import runpy
runpy.run_module("monitor_plugin.demo.backend", run_name="__main__")
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CircusHost]:
    """A circus with a watcher for each test."""
    folder = tmp_path_factory.mktemp("circus")
    launcher, titled = folder / "uv", folder / "titled.py"
    launcher.write_text('#!/bin/sh\n"$@" &\nwait\n')
    launcher.chmod(0o755)
    titled.write_text(TITLED)
    # They end by themselves after a failure: `CircusHost` does not find them by their environment.
    serve = f"{sys.executable} {titled} --weights-mib 1 --end-with-parent"
    killed = shlex.quote(f"{backend_command(addr='unix:FOLDER/killed')}; :")
    watchers: dict[str, dict[str, object]] = {
        "launched": {"cmd": f"{launcher} {backend_command(addr='unix:FOLDER/launched')}"},
        "titled": {
            "cmd": serve,
            "args": "--addr unix:FOLDER/titled$(circus.wid)",
            "numprocesses": 2,
        },
        "killed": {"cmd": f"bash -c {killed}"},
    }
    spawner = Spawner()
    host = CircusHost(spawner, watchers)
    yield host
    host.close()
    spawner.close()


def backends(host: CircusHost, model: str) -> list[int]:
    """Return the PIDs of a model's backends; none while the monitor does not answer."""
    try:
        answer = host.client.request("GET", f"/backends?model={model}").json
    except OSError:
        return []
    return sorted(each["pid"] for each in answer["backends"])


def listener(host: CircusHost, path: str) -> int | None:
    """Return the process that listens at a path in the folder of circus."""
    pids = [each.pid for each in host.started()]
    return SocketTable().find_listener(f"unix:{host.folder}/{path}", pids)


def test_server_of_a_launcher_is_registered(host: CircusHost) -> None:
    """A shutdown ends the launcher, its server and the watcher."""
    server = eventually(lambda: listener(host, "launched"))
    assert server
    eventually(lambda: backends(host, "launched") == [server])
    (launcher,) = host.pids("launched")
    assert launcher != server
    assert host.client.shutdown("launched").status == 200
    assert not is_running(launcher)
    assert not is_running(server)
    assert host.status("launched") == "stopped"
    assert host.repeat_call("start", name="launched")["status"] == "ok"
    eventually(lambda: backends(host, "launched") == [listener(host, "launched")])


@pytest.mark.once
def test_processes_that_overwrite_their_command_lines_are_found(host: CircusHost) -> None:
    """Each has the address of the configuration with its own number, also for a new plugin."""
    eventually(lambda: len(host.pids("titled")) == 2)
    pids = host.pids("titled")
    table = SocketTable()
    for number in (1, 2):
        address = f"unix:{host.folder}/titled{number}"
        eventually(lambda address=address: table.find_listener(address, pids))  # type: ignore[misc]
    assert not any(b"--addr" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
    eventually(lambda: backends(host, "titled") == pids)
    plugin = host.plugin_pid()
    os.kill(plugin, signal.SIGKILL)
    eventually(lambda: host.pids("plugin:monitor") not in ([], [plugin]))
    eventually(lambda: backends(host, "titled") == pids)
    assert host.client.shutdown("titled").status == 200
    assert not any(map(is_running, pids))


@pytest.mark.once
def test_server_of_a_killed_launcher_is_stopped_with_the_new_one(host: CircusHost) -> None:
    """The new launcher's server is refused, as the old one holds the address; both are ended."""
    address = f"unix:{host.folder}/killed"
    server = eventually(lambda: listener(host, "killed"))
    assert server
    eventually(lambda: backends(host, "killed") == [server])
    (launcher,) = host.pids("killed")
    os.kill(launcher, signal.SIGKILL)
    (new_launcher,) = eventually(lambda: new if (new := host.pids("killed")) != [launcher] else [])
    new_server = eventually(lambda: pid if (pid := listener(host, "killed")) != server else None)
    assert new_server
    eventually(lambda: f"is held by process {server} of model 'killed'" in host.log())
    refused = host.client.request("GET", "/backends").json["refused"]
    assert [(each["model"], each["pid"]) for each in refused] == [("killed", new_launcher)]
    assert backends(host, "killed") == [server]
    assert host.client.shutdown("killed").status == 200
    assert not any(map(is_running, (server, new_launcher, new_server)))
    assert not accepts_connection(address)
    assert host.status("killed") == "stopped"
