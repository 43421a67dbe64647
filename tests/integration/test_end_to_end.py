"""A real backend is registered, read and stopped: by HTTP, by commands, and with a hook file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import main

from ..support import Client, Spawner, eventually, is_running

MIB = 1024 * 1024
HOOK_FILE = """
from pathlib import Path
from monitor_plugin import hookimpl

@hookimpl
def monitor_backend_gone(backend, exit):
    Path(__file__).with_name("told").write_text(f"{backend.model}: {exit.cause} {exit.signal}")
"""


def test_backend_is_read_and_stopped(monitor: Monitor, client: Client, spawner: Spawner) -> None:
    """A backend's status is answered as documented, and a shutdown ends it."""
    backend = spawner.backend("--weights-mib", "4", "--kv-cache-mib", "2")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)

    answer = client.monitor("m")
    assert answer.status == 200
    assert answer.body == (
        b'{"state":2,"memory":{"total":%d,"breakdown":{"kv_cache":%d,"weights":%d}}}'
        % (6 * MIB, 2 * MIB, 4 * MIB)
    )
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Monitor-Source"] == "grpc"
    assert answer.headers["X-Monitor-Memory-Source"] == "backend"

    answer = client.shutdown("m")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert not is_running(backend.pid)
    assert backend.process.wait() == 0
    assert client.monitor("m").json["error"]["type"] == "model_not_loaded"


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_documented_curl_commands_work(
    prefix: str, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Both commands of LocalAI's documentation work, except for the port."""
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="my-model", pid=backend.pid, address=backend.address)

    def run(command: str) -> object:
        command = command.replace(
            "http://localhost:8080", f"http://localhost:{client.port}{prefix}"
        )
        return json.loads(subprocess.check_output(["bash", "-c", command], text=True, timeout=60))

    status = run(
        """curl -s http://localhost:8080/backend/monitor \
-H "Content-Type: application/json" \
-d '{"model": "my-model"}'"""
    )
    assert status == {
        "state": 2,
        "memory": {"total": 3 * MIB, "breakdown": {"weights": 2 * MIB, "kv_cache": MIB}},
    }
    stopped = run(
        """curl -s -X POST http://localhost:8080/backend/shutdown \
-H "Content-Type: application/json" \
-d '{"model": "my-model"}'"""
    )
    assert stopped == {"message": "model stopped"}
    eventually(lambda: not is_running(backend.pid))


def test_backend_without_status_is_sampled(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """A backend that does not implement Status is answered from its process, with the reason."""
    backend = spawner.backend("--no-status", "--weights-mib", "30")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)

    answer = client.monitor("m")
    assert answer.status == 200
    assert list(answer.json) == ["memory_info", "memory_percent", "cpu_percent"]
    assert list(answer.json["memory_info"]) == ["rss", "vms"]
    assert 30 * MIB < answer.json["memory_info"]["rss"] < answer.json["memory_info"]["vms"]
    assert 0 < answer.json["memory_percent"] < 100
    assert answer.json["cpu_percent"] >= 0
    assert answer.headers["X-Monitor-Source"] == "psutil"
    assert answer.headers["X-Monitor-Rpc-Error"] == "UNIMPLEMENTED"
    assert "X-Monitor-Memory-Source" not in answer.headers


def test_backend_without_reported_memory_is_measured(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """The memory of its process tree is summed, with shared pages once."""
    backend = spawner.backend("--no-memory", "--weights-mib", "50", "--fork-workers", "3")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)

    eventually(lambda: client.monitor("m").headers["X-Monitor-Memory-Source"] == "pss")
    answer = client.monitor("m")
    assert answer.status == 200
    assert answer.json["state"] == 2
    assert answer.json["memory"]["breakdown"] == {}
    assert 50 * MIB < answer.json["memory"]["total"] < 150 * MIB
    assert 0 <= float(answer.headers["X-Monitor-Memory-Age"]) < 60


def test_crash_is_told_to_a_hook_file_and_a_command(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A hook file is loaded and learns how a backend ended, and `ps` lists what runs and ended."""
    folder = tmp_path / "hooks"
    folder.mkdir(mode=0o755)
    (folder / "exits.py").write_text(HOOK_FILE)
    (folder / "exits.py").chmod(0o644)
    monitor = make_monitor(hooks_dir=str(folder))
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    assert main(["ps", "--url", monitor.url]) == 0
    assert f" {backend.pid} " in capsys.readouterr().out

    backend.process.kill()
    told = folder / "told"
    eventually(lambda: told.exists() and told.read_text() == "m: killed 9")
    assert main(["ps", "--url", monitor.url]) == 0
    assert "was killed by SIGKILL" in capsys.readouterr().out
