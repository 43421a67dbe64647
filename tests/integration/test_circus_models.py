"""Models of the real circus: what it says of them, their starts, and the last words of processes.

At every step the state that the monitor lists is that of `circusctl status`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ..support import Answer, Spawner, eventually, is_running
from .circus_host import CircusHost, backend_command

pytestmark = pytest.mark.slow

# Serves as a demo backend; ends with last words once a file exists, and not within a second.
MORTAL = """
import os, runpy, sys, threading, time

def end(path=sys.argv.pop(1)):
    time.sleep(1)
    while not os.path.exists(path):
        time.sleep(0.05)
    print(os.getpid(), "is out of ideas", file=sys.stderr, flush=True)
    os._exit(7)

threading.Thread(target=end, daemon=True).start()
runpy.run_module("monitor_plugin.demo.backend", run_name="__main__")
"""
# About 10 MB of any bytes within a second, then the last words.
FLOODS = "dd if=/dev/urandom bs=1M count=10 >&2; sleep 1; echo the flood is over >&2; exit 5"
# For the values of `KnownModel.state` the values of `circusctl status`.
STATUSES = {
    "running": {"active"},
    "starting": {"starting"},
    "waiting": {"active"},
    "stopped": {"stopped", "stopping"},
    "failed": {"stopped"},
    "exited": {"stopped", "active"},
}


def shell(script: str, path: str) -> str:
    """Return the command line of a shell that runs a script and has an address as an argument."""
    return f"sh -c '{script}' sh --addr unix:FOLDER/{path}"


def watchers(folder: Path, group: Path) -> dict[str, dict[str, object]]:
    """Return the options of the watchers. Most are started by their test."""
    (folder / "mortal.py").write_text(MORTAL)
    log = "stderr_stream.filename"
    every: dict[str, dict[str, object]] = {
        "mortal": {
            "cmd": f"{sys.executable} {folder}/mortal.py FOLDER/die --addr unix:FOLDER/mortal "
            "--weights-mib 2 --kv-cache-mib 1",
            log: "FOLDER/mortal.log",
        },
        "deaf": {
            "cmd": backend_command("--ignore-sigterm", addr="unix:FOLDER/deaf"),
            "graceful_timeout": 3,
        },
        "dies": {
            "cmd": shell("echo first words; echo last words >&2; exit 3", "dies"),
            log: "FOLDER/dies.log",
            "stdout_stream.class": "StdoutStream",
        },
        "once": {"cmd": shell("exit 4", "once"), "respawn": False},
        "missing": {"cmd": "/none/at/all --addr unix:FOLDER/missing"},
        "none": {"cmd": "sleep 1000 --addr unix:FOLDER/none", "numprocesses": 0},
        "ruled": {"cmd": "sleep 1000"},
        "idle": {"cmd": shell("exec sleep 1000", "idle")},
        "floods": {
            "cmd": shell(FLOODS, "floods"),
            "respawn": False,
            f"{log}": "FOLDER/floods.log",
            "stderr_stream.max_bytes": 1_000_000,
            "stderr_stream.backup_count": 2,
        },
        "greedy": {
            "cmd": shell(f"echo $$ > {group}/cgroup.procs && exec tail /dev/zero", "greedy"),
            "respawn": False,
        },
    }
    return {name: {"autostart": False, **options} for name, options in every.items()}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CircusHost]:
    """A circus with a watcher for each test, of which none runs at first."""
    spawner = Spawner()
    folder = tmp_path_factory.mktemp("circus")
    rule = "ruled=by/rule@unix:FOLDER/ruled"
    host = CircusHost(
        *(spawner, watchers(folder, memory_group())),
        backend=rule,
    )
    eventually(lambda: models(host))  # the monitor has polled circus
    yield host
    host.close()
    spawner.close()
    with contextlib.suppress(FileNotFoundError):
        memory_group().rmdir()


def memory_group() -> Path:
    """Return the path of a control group of this process' own, which a test makes."""
    root = Path("/sys/fs/cgroup")
    first = root / "memory"
    return (first if first.is_dir() else root) / f"monitor-plugin-test-circus-{os.getpid()}"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that take long."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def load(host: CircusHost, model: str) -> Answer:
    """Request a start."""
    return host.client.request("POST", "/backend/load", {"model": model}, timeout=120)


def models(host: CircusHost) -> dict[str, dict[str, Any]]:
    """Return the models without a backend by name; none before the monitor answers."""
    try:
        answer = host.client.request("GET", "/backends").json
    except OSError:
        return {}
    return {each.pop("model"): each for each in answer["models"]}


def wait_state(host: CircusHost, model: str, state: str, *, watcher: str = "") -> str:
    """Wait until a model has a state, in agreement with `circusctl status`; return its detail."""
    watcher = watcher or model

    def find() -> list[str]:
        known = models(host).get(model, {"state": "running", "detail": None})
        agrees = host.status(watcher) in STATUSES[known["state"]]
        return [str(known["detail"])] if agrees and known["state"] == state else []

    return eventually(find)[0]


def ends(host: CircusHost, model: str) -> list[dict[str, Any]]:
    """Return the ended backends of a model."""
    return list(host.client.request("GET", f"/backends?model={model}").json["ended"])


def message(answer: Answer) -> str:
    """Return the message of a start that failed."""
    assert answer.status == 500
    assert answer.json["loaded"] == []
    assert answer.json["error"]["type"] == "start_failed"
    assert answer.json["error"]["message"] == answer.json["message"]
    return str(answer.json["message"])


@pytest.mark.once
def test_watchers_without_a_process_are_known(host: CircusHost) -> None:
    """Watchers are models by a rule or by `--addr`; the plugin and other watchers are not."""
    found = models(host)
    names = {"mortal", "deaf", "dies", "once", "missing", "none", "idle", "floods", "greedy"}
    assert found.keys() == {*names, "by/rule"}
    stopped = {"state": "stopped", "detail": None, "can_start": True}
    assert all(found[name] == stopped for name in found)
    control = host.control("status").splitlines()
    assert sorted(control) == sorted(
        ["other: active", "plugin:monitor: active", "ruled: stopped"]
        + [f"{name}: stopped" for name in names]
    )


def test_model_that_dies_after_its_start(host: CircusHost) -> None:
    """circus starts it again, until it is stopped; then it can be started again."""
    loaded = {"loaded": ["mortal"], "message": "model loaded"}
    answer = load(host, "mortal")
    assert (answer.status, answer.json) == (200, loaded)
    assert host.control("status", "mortal") == "active\n"
    (pid,) = host.pids("mortal")
    assert load(host, "mortal").json == loaded
    assert host.pids("mortal") == [pid]
    die = host.folder / "die"
    die.touch()
    eventually(lambda: not is_running(pid))

    def last_words() -> object:
        (ended,) = [each for each in ends(host, "mortal") if each["pid"] == pid]
        return ended["last_output"]

    assert eventually(last_words) == f"{pid} is out of ideas"

    def log(query: str) -> str:
        path = f"/backend/log?model=mortal{query}"
        return str(host.client.request("GET", path).json["text"])

    # The next process ends too, and has its last words in the same file.
    eventually(lambda: log("").count("is out of ideas") > 1)
    assert log(f"&pid={pid}") == f"{pid} is out of ideas\n"
    assert host.repeat_call("stop", name="mortal")["status"] == "ok"
    wait_state(host, "mortal", "stopped")
    die.unlink()
    assert load(host, "mortal").status == 200
    assert host.client.shutdown("mortal").status == 200
    assert host.control("status", "mortal") == "stopped\n"
    wait_state(host, "mortal", "stopped")
    assert load(host, "mortal").status == 200


@pytest.mark.once
def test_models_that_die_at_once(host: CircusHost, pool: ThreadPoolExecutor) -> None:
    """Each model has a state; its start fails with circus' reason and the last output."""
    dies, once, missing, none = (
        pool.submit(load, host, model) for model in ("dies", "once", "missing", "none")
    )
    assert "watcher 'missing': circus could not start a process" in message(missing.result())
    detail = wait_state(host, "missing", "failed")
    assert detail == "circus could not start a process, its log says why"
    assert "its last process exited with code 4" in message(once.result())
    wait_state(host, "once", "exited")
    assert "could not start a process" in message(none.result())
    waiting = eventually(
        lambda: (
            each if "exited with code 3" in (each := wait_state(host, "dies", "waiting")) else ""
        )
    )
    assert waiting.startswith("its last process exited with code 3")
    # circus itself never gives up. The default limit of a start is 300 s.
    failed = message(dies.result())
    assert "could not be started: its processes end " in failed or (
        "could not be started: no process of it ran for 10 s" in failed
    )
    assert "; its last output:\nlast words\n" in failed
    wait_state(host, "dies", "waiting")
    assert host.repeat_call("stop", name="dies")["status"] == "ok"
    wait_state(host, "dies", "stopped")


@pytest.mark.once
def test_log_of_a_model_that_floods_it_with_bytes(host: CircusHost) -> None:
    """The last words of 10 MB that are no text, in a log that circus rotates meanwhile."""
    failed = message(load(host, "floods"))
    assert "exited with code 5" in failed
    assert failed.endswith("\nthe flood is over")
    assert "\0" not in failed
    assert (host.folder / "floods.log.2").exists()

    def read(after: int | None = None) -> dict[str, Any]:
        path = "/backend/log?model=floods&bytes=1000000"
        path += "" if after is None else f"&after={after}"
        return dict(host.client.request("GET", path).json)

    whole = read()
    assert whole["source"] == "host"
    assert whole["text"].endswith("\nthe flood is over\n")
    end = whole["next"]
    # With the rotated files there is more than one file may have.
    assert whole["start"] in range(end - 1_000_000, end - 999_000)
    rest = read(end - 18)
    assert (rest["text"], rest["next"], rest["gap"]) == ("the flood is over\n", end, False)
    assert (read(end)["text"], read(0)["gap"]) == ("", True)


@pytest.mark.once
def test_model_that_is_killed_for_want_of_memory(host: CircusHost) -> None:
    """The kernel kills it in a control group of its own."""
    group = memory_group()
    limit = "memory.limit_in_bytes" if group.parent.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(16 << 20))
        if (swap := group / "memory.swap.max").exists():
            swap.write_text("0")
    except OSError as error:
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    failed = message(load(host, "greedy"))
    assert "killed by" in failed
    wait_state(host, "greedy", "exited")


@pytest.mark.once
def test_starts_and_stops_exclude_one_another(host: CircusHost, pool: ThreadPoolExecutor) -> None:
    """A start waits until a stop by `circusctl` has ended; a stop ends a start that waits."""
    assert load(host, "deaf").status == 200
    (pid,) = host.pids("deaf")
    assert host.repeat_call("stop", name="deaf")["status"] == "ok"
    assert host.status("deaf") == "stopping"
    # Until the monitor has heard of the stop, the model is ready, and there is nothing to do.
    eventually(lambda: load(host, "deaf").status == 200 and not is_running(pid))
    assert host.pids("deaf") not in ([], [pid])
    assert host.control("status", "deaf") == "active\n"

    def begin() -> Future[Answer]:
        """Begin a start of a model that never answers; return when circus has started it."""
        loading = pool.submit(load, host, "idle")
        eventually(lambda: host.client.request("GET", "/backends?model=idle").json["backends"])
        assert host.status("idle") == "active"
        return loading

    loading = begin()
    assert host.control("stop", "idle") == "ok\n"
    assert "host says stopped" in message(loading.result())
    wait_state(host, "idle", "stopped")
    loading = begin()
    assert host.client.shutdown("idle", force=True).status == 200
    assert "a shutdown by force" in message(loading.result())
    assert host.control("status", "idle") == "stopped\n"
    wait_state(host, "idle", "stopped")
