"""The monitor as a plugin of a real circusd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from monitor_plugin.demo.calls import calls, make_calls

from ..support import Spawner, eventually, free_port, is_running
from .circus_host import CircusHost, backend_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent

WATCHERS: dict[str, dict[str, object]] = {
    "by-addr": {"cmd": backend_command(addr="unix:FOLDER/addr")},
    "by-equals": {"cmd": backend_command(addr="unix:FOLDER/equals").replace("addr ", "addr=")},
    "by-env": {"cmd": "sleep 1000"},
    "by-rule-7": {"cmd": "sleep 1000"},
    "Wrapped": {
        "cmd": f"sh -c '{sys.executable} -m monitor_plugin.demo.backend --addr unix:FOLDER/wrapped"
        " --weights-mib 1 --fork-workers 1; true'"
    },
    "Org.Model-7B": {"cmd": backend_command(addr="unix:FOLDER/dots")},
    "glob-*": {"cmd": backend_command(addr="unix:FOLDER/glob")},
    "replicas": {"cmd": backend_command(addr="unix:FOLDER/r$(circus.wid)"), "numprocesses": 3},
    "one-address": {
        "cmd": f"{sys.executable} -S -c 'import time; time.sleep(1000)' --addr unix:FOLDER/one",
        "numprocesses": 2,
    },
    "killed": {"cmd": backend_command(addr="unix:FOLDER/killed")},
    "last": {"cmd": backend_command(addr="unix:FOLDER/last")},
    "stubborn": {
        "cmd": backend_command("--ignore-sigterm", addr="unix:FOLDER/stubborn"),
        "graceful_timeout": 3,
    },
    "slow": {
        "cmd": backend_command("--ignore-sigterm", addr="unix:FOLDER/slow"),
        "graceful_timeout": 9,
    },
}
ENVIRONMENT = {
    "env:by-env": {"MONITOR_MODEL": "org/from the environment", "MONITOR_ADDRESS": "unix:FOLDER/e"}
}

RULES = '"by-rule-*=ruled/*@unix:FOLDER/rule*,\n    none=a model with spaces@unix:FOLDER/none"'


@pytest.fixture(scope="module")
def host() -> Iterator[CircusHost]:
    """A circus with a watcher for each test; all models except one are registered at once."""
    spawner = Spawner()
    host = CircusHost(
        spawner, WATCHERS, sections=ENVIRONMENT, backend=RULES, stop_timeout_seconds=8
    )
    yield host
    host.close()
    spawner.close()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for sockets. Processes that name it are killed afterwards."""
    with tempfile.TemporaryDirectory(prefix="circus-") as folder:
        yield Path(folder)
        for process in processes_of(Path(folder)):
            process.kill()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command lines name a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def make_host(spawner: Spawner) -> Iterator[Callable[..., CircusHost]]:
    """Starts a circus for a single test."""
    hosts: list[CircusHost] = []

    def make(*arguments: object, **options: object) -> CircusHost:
        hosts.append(CircusHost(spawner, *arguments, **options))  # type: ignore[arg-type]
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def shut_down(host: CircusHost, model: str = "m") -> object:
    """Request the shutdown of a model; return the status of the response, or the error."""
    try:
        return host.client.shutdown(model).status
    except (OSError, HTTPException) as error:
        return error


def stays_down(host: CircusHost, watcher: str) -> bool:
    """Whether a watcher is still stopped after circus has checked all watchers."""
    host.wait_managed()
    return host.status(watcher) == "stopped" and host.pids(watcher) == []


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("by-addr", "grpc"),
        ("by-equals", "grpc"),
        ("org/from the environment", "psutil"),
        ("ruled/7", "psutil"),
        ("Wrapped", "grpc"),
        ("Org.Model-7B", "grpc"),
    ],
)
def test_programs_with_an_address_become_backends(
    host: CircusHost, model: str, source: str
) -> None:
    """Each way to give a program an address works, and GET and POST answer for it."""
    host.wait_found(model)

    def answers() -> bool:
        return all(
            host.client.request(method, path, {"model": model}).headers["X-Monitor-Source"]
            == source
            for method in ("GET", "POST")
            for path in ("/backend/monitor", "/v1/backend/monitor")
        )

    eventually(answers)


@pytest.mark.once
@pytest.mark.parametrize("name", ["other", "plugin:monitor"])
def test_programs_without_an_address_are_no_backends(host: CircusHost, name: str) -> None:
    """Nor is the plugin itself one."""
    host.wait_found("by-addr")
    assert host.client.monitor(name).json["error"]["type"] == "model_not_loaded"


def test_stopped_model_is_not_restarted(host: CircusHost) -> None:
    """A shutdown stops the watcher, so that circus does not start the model again."""
    host.wait_found("Org.Model-7B")
    (pid,) = host.pids("Org.Model-7B")
    answer = host.client.shutdown("Org.Model-7B")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert not is_running(pid)
    assert stays_down(host, "Org.Model-7B")
    assert host.client.shutdown("Org.Model-7B").json["error"]["type"] == "model_not_loaded"

    assert host.repeat_call("start", name="org.model-7b")["status"] == "ok"
    host.wait_found("Org.Model-7B")


@pytest.mark.once
def test_watcher_name_is_not_used_as_a_pattern(host: CircusHost) -> None:
    """A watcher whose name circus could take for a pattern is stopped without other watchers."""
    host.wait_found("glob-*")
    assert (
        host.repeat_call("add", name="glob-other", cmd="sleep 1000", start=True)["status"] == "ok"
    )
    (other,) = eventually(lambda: host.pids("glob-other"))
    assert host.client.shutdown("glob-*").status == 200
    assert host.status("glob-*") == "stopped"
    assert host.pids("glob-other") == [other]
    host.repeat_call("rm", name="glob-other")


@pytest.mark.once
def test_children_of_a_shell_are_stopped_too(host: CircusHost) -> None:
    """Circus ends only the shell; the monitor ends the backend behind it, and its children."""
    host.wait_found("Wrapped")

    def tree() -> list[psutil.Process]:  # shell, server, worker
        path = f"unix:{host.folder}/wrapped"
        with contextlib.suppress(psutil.Error):
            found = [each for each in host.started() if path in str(each.cmdline())]
            return found if len(found) == 3 else []
        return []

    processes = eventually(tree)
    assert host.client.shutdown("Wrapped").status == 200
    assert not any(is_running(each.pid) for each in processes)
    assert stays_down(host, "Wrapped")


def test_processes_of_a_watcher_are_replicas(host: CircusHost) -> None:
    """One of them cannot be stopped for good, which the error says; all together can."""
    memory = {"total": 3, "breakdown": {"port": 3}}
    eventually(lambda: host.wait_found("replicas", 3).get("memory") == memory)
    pids = host.pids("replicas")
    refused = host.client.shutdown("replicas", pid=pids[1])
    assert refused.status == 500
    assert (
        "watcher 'replicas' of circus runs 3 processes, and circus cannot stop one of them for "
        "good; stop the whole model, or run it in a watcher of its own"
    ) in refused.json["error"]["message"]
    assert host.pids("replicas") == pids

    assert host.client.shutdown("replicas").status == 200
    assert not any(is_running(pid) for pid in pids)
    assert stays_down(host, "replicas")


@pytest.mark.once
def test_process_with_a_taken_address_is_not_stopped(host: CircusHost) -> None:
    """The second process with an address is refused, and is not stopped together with the first."""
    host.wait_found("one-address")
    pids = eventually(lambda: two if len(two := host.pids("one-address")) == 2 else [])
    refused = [host.client.shutdown("one-address", pid=pid) for pid in pids]
    # The one is not held, and the other not stopped.
    assert sorted(each.status for each in refused) == [400, 500]
    (message,) = [each.json["error"]["message"] for each in refused if each.status == 500]
    assert "watcher 'one-address' of circus runs 2 processes" in message
    assert host.pids("one-address") == pids
    assert all(map(is_running, pids))
    assert host.client.shutdown("one-address").status == 200
    assert not any(map(is_running, pids))
    assert stays_down(host, "one-address")


def test_busy_arbiter_is_asked_again(host: CircusHost) -> None:
    """While circus stops one watcher it refuses to stop another; the shutdown tries again."""
    host.wait_found("by-equals")
    host.wait_serving("stubborn")
    assert host.repeat_call("stop", name="stubborn")["status"] == "ok"
    assert host.call("stop", name="by-equals", waiting=True)["errno"] == 5
    assert host.client.shutdown("by-equals").status == 200
    assert stays_down(host, "by-equals")


@pytest.mark.once
def test_killed_backend_is_replaced_by_its_successor(host: CircusHost) -> None:
    """Circus starts it again, and the monitor answers for the new process."""
    host.wait_found("killed")
    (before,) = host.pids("killed")
    os.kill(before, signal.SIGKILL)
    (after,) = eventually(lambda: [pid for pid in host.pids("killed") if pid != before])
    host.wait_found("killed")
    assert host.client.request("GET", f"/backend/monitor?model=killed&pid={after}").status == 200
    assert host.client.shutdown("killed").status == 200
    assert not is_running(after)


@pytest.mark.once
def test_killed_plugin_finds_all_backends_again(host: CircusHost) -> None:
    """Circus restarts the plugin, also during a shutdown, and it registers the running backends."""
    host.wait_found("last")
    assert host.repeat_call("start", name="stubborn")["status"] == "ok"
    host.wait_serving("stubborn")
    pids, plugin = host.pids("last"), host.plugin_pid()
    client = threading.Thread(target=shut_down, args=(host, "stubborn"))
    client.start()
    eventually(lambda: host.status("stubborn") == "stopping")
    os.kill(plugin, signal.SIGKILL)
    client.join(30)
    eventually(lambda: host.pids("plugin:monitor") not in ([], [plugin]))
    assert stays_down(host, "stubborn")  # circus went on with it
    host.wait_found("last")
    assert host.pids("last") == pids
    assert host.client.shutdown("last").status == 200
    assert stays_down(host, "last")


@pytest.mark.once
@pytest.mark.parametrize("command", ["reload", "restart"])
def test_reloaded_plugin_waits_for_its_address(host: CircusHost, command: str) -> None:
    """After a reload the new plugin waits until the old one has released the address."""
    host.wait_found("by-addr")
    plugin = host.plugin_pid()
    assert host.repeat_call(command, name="plugin:monitor", waiting=True)["status"] == "ok"
    eventually(lambda: host.pids("plugin:monitor") not in ([], [plugin]) and not is_running(plugin))
    host.wait_found("by-addr")
    assert host.status("plugin:monitor") == "active"


def test_added_and_removed_watchers_are_followed(host: CircusHost) -> None:
    """Added ones are found, removed ones are gone; a process that circus forgot can be stopped."""
    for nostop in (False, True):
        added = host.repeat_call(
            *("add",),
            name="Added",
            cmd=backend_command(addr=f"unix:{host.folder}/added"),
            start=True,
            options={"copy_env": True},
        )
        assert added["status"] == "ok"
        host.wait_found("Added")
        (pid,) = host.pids("Added")
        assert host.repeat_call("rm", name="Added", nostop=nostop)["status"] == "ok"
        if nostop:
            assert is_running(pid)
            assert host.client.shutdown("Added").status == 200
        eventually(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
        assert host.client.monitor("Added").json["error"]["type"] == "model_not_loaded"


@pytest.mark.once
def test_audit_lines_are_in_the_log_of_circus(host: CircusHost) -> None:
    """The line of a shutdown is logged, although this circus logs only warnings and worse."""
    host.wait_found("by-addr")
    host.client.shutdown("nothing")

    def models() -> list[object]:
        lines = [line for line in host.log().splitlines() if "monitor_plugin.audit" in line]
        return [json.loads(line.partition("[INFO] ")[2])["model"] for line in lines]

    eventually(lambda: "nothing" in models())


@pytest.mark.once
def test_graceful_timeout_above_the_stop_timeout_is_logged(host: CircusHost) -> None:
    """The shutdown goes on while circus still waits, and the log says what to set."""
    host.wait_serving("slow")
    assert host.client.shutdown("slow").status == 200
    told = "graceful_timeout, 9 s: the setting stop_timeout_seconds should be above"
    eventually(lambda: told in host.log())


@pytest.mark.once
def test_monitor_survives_reload_and_restart_of_circus(
    make_host: Callable[..., CircusHost],
) -> None:
    """It ends with circus."""
    host = make_host({"m": {"cmd": backend_command(addr="unix:FOLDER/m")}})
    host.wait_found("m")
    for command in ("reload", "restart"):
        pids = host.pids("m")
        assert host.repeat_call(command)["status"] == "ok"
        eventually(lambda pids=pids: not any(map(is_running, pids)))  # type: ignore[misc]
        host.wait_found("m")
    assert host.end() == 0
    eventually(lambda: host.started() == [])
    # No error, no warning, but for those while what was there before holds an address still, where
    # circus is slow to answer, and where it has just ended a process that it listed.
    known = ("trying again for", "is held by process", "did not answer", "does not run")
    told = [line for line in host.log().splitlines() if " monitor_plugin" in line]
    assert [line for line in told if not any(each in line for each in known)] == []


def test_monitor_closes_when_circus_stops_it(make_host: Callable[..., CircusHost]) -> None:
    """At the SIGTERM of circus the plugin closes the monitor, and leaves the backends alone."""
    host = make_host({"m": {"cmd": backend_command(addr="unix:FOLDER/m")}}, loglevel="info")
    host.wait_found("m")
    ((backend,), plugin) = host.pids("m"), host.plugin_pid()
    assert host.repeat_call("stop", name="plugin:monitor", waiting=True)["status"] == "ok"
    assert not is_running(plugin)
    eventually(lambda: f"circus[{plugin}] [INFO] Stopping" in host.log())
    assert host.pids("m") == [backend]


@pytest.mark.once
def test_shutdown_in_progress_does_not_delay_the_end(make_host: Callable[..., CircusHost]) -> None:
    """A monitor that ends does not wait for a slow command of circus."""
    backend = backend_command("--ignore-sigterm", addr="unix:FOLDER/m")
    host = make_host({"m": {"cmd": backend, "graceful_timeout": 90}}, stop_timeout_seconds=90)
    host.wait_serving("m")
    plugin = host.plugin_pid()
    outcomes: list[object] = []
    client = threading.Thread(target=lambda: outcomes.append(shut_down(host)))
    client.start()
    eventually(lambda: host.status("m") == "stopping")
    os.kill(plugin, signal.SIGTERM)
    eventually(lambda: not is_running(plugin))
    client.join(30)
    assert len(outcomes) == 1
    assert outcomes[0] != 200


@pytest.mark.once
def test_killed_circus_ends_a_shutdown_with_an_error(make_host: Callable[..., CircusHost]) -> None:
    """The client gets an error, the plugin ends, backends are left alone; a new circus works."""
    backend = backend_command("--ignore-sigterm", addr="unix:FOLDER/m")
    host = make_host({"m": {"cmd": backend, "graceful_timeout": 60}}, stop_timeout_seconds=20)
    host.wait_serving("m")
    ((pid,), plugin) = host.pids("m"), host.plugin_pid()
    outcomes: list[object] = []
    client = threading.Thread(target=lambda: outcomes.append(shut_down(host)))
    client.start()
    eventually(lambda: host.status("m") == "stopping")
    host.kill()
    eventually(lambda: not is_running(plugin))
    client.join(30)
    assert len(outcomes) == 1
    assert outcomes[0] != 200
    assert is_running(pid)

    os.kill(pid, signal.SIGKILL)
    host.start()
    host.wait_found("m")


@pytest.mark.once
def test_settings_come_from_the_environment_too(make_host: Callable[..., CircusHost]) -> None:
    """Options take precedence, and no log has the token, which only a variable can set.

    The plugin waits for an address in use: another process, such as the plugin before a reload,
    may release it a moment later.
    """
    environment = {"MONITOR_TOKEN": "from-the-environment", "MONITOR_LISTEN": "127.0.0.1:1"}
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        host = make_host({}, environment, loglevel="debug", port=port)
        eventually(lambda: "trying again for 15 s" in host.log())

    def status(**headers: str) -> int | None:
        try:
            return host.client.request("GET", "/backend/monitor?model=m", headers=headers).status
        except OSError:
            return None

    assert eventually(status) == 401
    assert status(Authorization="Bearer from-the-environment") == 500
    assert "from-the-environment" not in host.log()


@pytest.mark.once
def test_invalid_option_ends_the_plugin(make_host: Callable[..., CircusHost]) -> None:
    """The log has one error, and circus does not restart the plugin again and again.

    After `reloadconfig` a plugin whose section was corrected runs.
    """
    errors = {
        "plugin:monitor": "option http_threads='many'",
        "plugin:token": "token is no option",
        "plugin:colon": "circus lost options",
    }
    use = {"use": "monitor_plugin.hosts.circus.MonitorPlugin"}
    sections = {
        "plugin:token": {**use, "token": "very-secret"},
        "plugin:colon": {**use, "trusted_proxy": "::1"},
    }
    host = make_host({"by-rule": {"cmd": "sleep 1000"}}, sections=sections, http_threads="many",
                     backend="by-rule=m@unix:FOLDER/m")  # fmt: skip
    for name, error in errors.items():
        # After the error, so that it has run: before that it is stopped as well.
        eventually(lambda error=error: error in host.log())  # type: ignore[misc]
        eventually(lambda name=name: host.status(name) == "stopped")  # type: ignore[misc]
    host.wait_managed()
    for name, error in errors.items():
        assert (host.status(name), host.pids(name)) == ("stopped", [])
        assert host.log().count(error) == 1
    assert "very-secret" not in host.log()

    host.ini.write_text(host.ini.read_text().replace("many", "4"))
    assert host.repeat_call("reloadconfig", waiting=True)["status"] == "ok"
    host.wait_found("m")


@pytest.mark.once
def test_example_runs(spawner: Spawner, short_folder: Path) -> None:
    """`make demo-circus` runs three models and prints commands; Ctrl-C ends all processes."""
    ini = (ROOT / "examples" / "circus" / "circus.ini").read_text()
    port = free_port()
    for before, after in {
        "listen = 127.0.0.1:8080": f"listen = 127.0.0.1:{port}",
        "addr 127.0.0.1:": f"addr unix:{short_folder}/",
        "addr=127.0.0.1:": f"addr=unix:{short_folder}/",
        "[circus]\n": f"[circus]\nendpoint = ipc://{short_folder}/e\n"
        f"pubsub_endpoint = ipc://{short_folder}/p\n",
    }.items():
        assert before in ini
        ini = ini.replace(before, after)
    (short_folder / "circus.ini").write_text(ini)
    demo = spawner.process(
        *(sys.executable, "-m", "monitor_plugin.demo.real_host", f"http://127.0.0.1:{port}"),
        *("circusd", "circus.ini"),
        cwd=short_folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("MONITOR_")},
    )
    assert demo.stdout is not None
    said = ""
    while "Ctrl-C ends all of it." not in (line := demo.stdout.readline()):
        assert line, said
        said += line
    assert "circusd runs 3 models" in said
    for call in calls():
        assert call.curl(f"http://127.0.0.1:{port}") in said
    for text, as_expected in make_calls(f"http://127.0.0.1:{port}", None):
        assert as_expected, text
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(timeout=60) == 0
    assert processes_of(short_folder) == []
