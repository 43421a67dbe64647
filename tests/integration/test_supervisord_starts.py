"""From stopped to running again under the real supervisord, over HTTP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from ..support import LIGHT_BACKEND, Answer, eventually, free_port, is_running
from .supervisord_host import Host, program
from .test_oom import Group

pytestmark = pytest.mark.slow

# Waits for SIGUSR1, then takes more memory than its control group may have. A shell joins the group
# before, so that the monitor finds the process there.
GREEDY = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
open("/proc/self/oom_score_adj", "w").write("1000")
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
print("needs more", file=sys.stderr, flush=True)
b = bytearray(256 << 20)
b[::4096] = b[::4096]
"""


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A control group with little memory; its folder is missing if none can be made."""
    group = Group(f"monitor-plugin-test-{os.getpid()}-supervisord")
    try:
        group.make()
    except OSError:
        group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, group: Group) -> Iterator[Host]:
    """A supervisord with the monitor; each test has programs of its own."""
    folder = tmp_path_factory.mktemp("supervisord")

    def address() -> str:
        return f"--addr 127.0.0.1:{free_port()}"

    crashes = f"{sys.executable} -m monitor_plugin.demo.backend --weights-mib 1 --crash-after 3"
    manual, once, patient = "autostart=false", "autorestart=false", "stopwaitsecs=3"
    (folder / "dies.sh").write_text("echo last words >&2; exit 3")
    again = f"test -e {folder}/stay && exec sleep 1000; . {folder}/dies.sh"
    (folder / "again.sh").write_text(again)
    (folder / "greedy.py").write_text(GREEDY)
    (folder / "slow.sh").write_text(f"sleep 2; exec {LIGHT_BACKEND} $*")
    sections = [
        program(
            "dies", f"sh {folder}/dies.sh {address()}", manual, "startsecs=1", "startretries=2"
        ),
        program("again", f"sh {folder}/again.sh {address()}", manual, "startsecs=0"),
        program("plain", f"{LIGHT_BACKEND} {address()}", manual),
        program("later", f"{crashes} {address()}", manual, once),
        program(
            "greedy",
            f"sh -c 'echo $$ > {group.path}/cgroup.procs;"
            f" exec {sys.executable} -S {folder}/greedy.py {address()}'",
            *(manual, once),
        ),
        program("deaf", f"{LIGHT_BACKEND} {address()} --ignore-sigterm", manual, patient),
        program("slow", f"sh {folder}/slow.sh {address()}", manual, "startsecs=3600"),
    ]
    host = Host(folder, "\n".join(sections)).start()
    try:
        eventually(lambda: state(host, "deaf"))  # once the monitor serves
        yield host
    finally:
        host.close()


def load(host: Host, model: str) -> Answer:
    return host.client.request("POST", "/backend/load", {"model": model}, timeout=180)


def listed(host: Host, model: str) -> Any:
    """Return what the monitor lists of a model."""
    return host.client.request("GET", f"/backends?model={model}").json


def state(host: Host, model: str) -> str | None:
    """Return the state that the monitor lists: `loaded` if the model has a backend."""
    try:
        answer = listed(host, model)
    except OSError:  # the monitor does not serve yet
        return None
    if answer["backends"]:
        return "loaded"
    return next((each["state"] for each in answer["models"]), None)


def agrees(host: Host, model: str, expected: str, statename: str) -> bool:
    """Whether the monitor and `supervisorctl status` say this."""
    if state(host, model) != expected:
        return False
    return host.control("status", model).split()[1] == statename


def test_model_that_ends_at_once_is_seen_and_cannot_be_loaded(host: Host) -> None:
    """The answer names the reason of supervisord, and has the last words of the process."""
    assert agrees(host, "dies", "stopped", "STOPPED")
    with futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, host, "dies")
        eventually(lambda: state(host, "dies") == "waiting")
        answer = loading.result(180)
    assert (answer.status, answer.json["loaded"]) == (500, [])
    assert answer.json["error"]["type"] == "start_failed"
    assert "Exited too quickly" in answer.json["message"]
    assert answer.json["message"].endswith("last words")
    assert agrees(host, "dies", "failed", "FATAL")


def test_start_fails_although_supervisord_never_gives_up(host: Host) -> None:
    """It restarts what ends at once for ever if `startsecs` is 0. The default limit is 300 s."""
    answer = load(host, "again")
    assert (answer.status, answer.json["loaded"]) == (500, [])
    assert answer.json["error"]["type"] == "start_failed"
    assert answer.json["message"].endswith("last words")

    (host.folder / "stay").touch()  # a stop is refused in a pause between two processes

    def stop() -> bool:
        host.control("stop", "again")
        return agrees(host, "again", "stopped", "STOPPED")

    eventually(stop)


def test_model_is_restarted_also_if_it_is_stopped(host: Host) -> None:
    """supervisord stops and starts the program, or only starts it."""

    def restart() -> list[int]:
        answer = host.client.request("POST", "/backend/restart", {"model": "plain"}, timeout=180)
        assert (answer.status, answer.json["loaded"]) == (200, ["plain"])
        assert agrees(host, "plain", "loaded", "RUNNING")
        return host.backends("plain")

    (first,) = restart()
    (second,) = restart()
    assert first != second == host.pid("plain")
    assert not is_running(first)
    assert host.client.shutdown("plain").status == 200
    assert agrees(host, "plain", "stopped", "STOPPED")


def test_model_that_ends_later_is_loaded_again(host: Host) -> None:
    """supervisord leaves it EXITED, and a load starts it."""
    answer = load(host, "later")
    assert (answer.status, answer.json) == (200, {"loaded": ["later"], "message": "model loaded"})
    eventually(lambda: agrees(host, "later", "exited", "EXITED"))
    (end,) = eventually(lambda: listed(host, "later")["ended"])
    assert "Bad exit code 3" in listed(host, "later")["models"][0]["detail"]
    assert load(host, "later").status == 200
    assert end["pid"] not in host.backends("later")


def test_model_that_ends_for_want_of_memory_is_listed(host: Host, group: Group) -> None:
    """The kernel kills it; supervisord says -1 for the exit code of every signal."""
    if not group.path.is_dir():
        pytest.skip("no control group with a memory limit can be made here")
    host.begin("greedy")
    eventually(lambda: state(host, "greedy") == "loaded")
    pid = host.pid("greedy")
    log = Path(host.info("greedy")["stdout_logfile"])
    eventually(lambda: "ready" in log.read_text())
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: agrees(host, "greedy", "exited", "EXITED"))
    (end,) = eventually(lambda: listed(host, "greedy")["ended"])
    assert (end["pid"], end["signal_name"], end["oom"]) == (pid, "SIGKILL", True)
    eventually(lambda: listed(host, "greedy")["ended"][0]["last_output"] == "needs more")


def test_load_during_a_shutdown_and_shutdown_during_a_load_follow_it(host: Host) -> None:
    """Each operation waits for the operation before it; supervisord agrees after each."""
    assert load(host, "deaf").status == 200
    assert agrees(host, "deaf", "loaded", "RUNNING")
    pid = host.pid("deaf")
    with futures.ThreadPoolExecutor(2) as pool:
        stopping = pool.submit(host.client.shutdown, "deaf")
        eventually(lambda: host.state("deaf") == "STOPPING")
        assert load(host, "deaf").status == 200
        assert stopping.result(60).status == 200
        assert not is_running(pid)
        assert agrees(host, "deaf", "loaded", "RUNNING")
        loading = pool.submit(load, host, "slow")
        eventually(lambda: host.state("slow") == "STARTING")
        assert host.client.shutdown("slow").status == 200
        assert loading.result(60).status == 200
    assert agrees(host, "slow", "stopped", "STOPPED")


def test_stop_by_supervisorctl_ends_a_load(host: Host) -> None:
    """The monitor does not start the model again, and says that its host has stopped it."""
    with futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, host, "slow")
        eventually(lambda: host.state("slow") == "STARTING")
        host.control("stop", "slow")
        answer = loading.result(180)
    assert answer.status == 500
    assert "its host says stopped" in answer.json["message"]
    assert agrees(host, "slow", "stopped", "STOPPED")
