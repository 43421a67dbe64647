"""`monitor_plugin.testing`, as an author of hooks uses it, in a separate run of pytest."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor_plugin.testing import BackendFactory, MonitorFactory, end_group, eventually

from .support import Spawner, is_running

TEST = """
pytest_plugins = ["monitor_plugin.testing"]

def test_mine(make_monitor, backend):
    monitor = make_monitor(http_threads=2)
    backend(no_status=True).register(monitor, "m")
    assert monitor.read("m").source == "psutil"
"""


def test_backend_has_the_faults_of_its_switches(
    make_monitor: MonitorFactory, backend: BackendFactory
) -> None:
    """Switches are those of the demo's backend, and each one is a real process."""
    monitor = make_monitor(status_timeout_seconds=0.3, stop_timeout_seconds=3)
    kinds: dict[str, dict[str, bool | float]] = {
        "good": {"state": 1, "weights_mib": 4},
        "silent": {"no_status": True, "no_memory": False},
        "hung": {"hang_status": True},
        "stubborn": {"ignore_sigterm": True, "fork_workers": 1},
        "brief": {"crash_after": 5},
    }
    for model, switches in kinds.items():
        backend(**switches).register(monitor, model)
    status = eventually(lambda: monitor.read("good").status)
    assert status
    assert status.state == 1
    eventually(lambda: monitor.read("silent").rpc_error == "UNIMPLEMENTED")
    assert monitor.read("hung").rpc_error == "DEADLINE_EXCEEDED"
    (stubborn,) = [each for each in monitor.backends() if each.model == "stubborn"]
    monitor.shutdown("stubborn")
    assert not is_running(stubborn.pid)
    eventually(lambda: "brief" not in [each.model for each in monitor.backends()])


def test_backend_may_be_ended_by_a_test(
    make_monitor: MonitorFactory, backend: BackendFactory
) -> None:
    """A test may end a backend; the fixture accepts that, and ends the remaining backends."""
    monitor, ends, stays = make_monitor(), backend(fork_workers=1), backend()
    ends.register(monitor, "m")
    ends.end()
    eventually(lambda: not monitor.backends())
    backend.close()
    assert not is_running(stays.pid)


def test_backend_that_does_not_start_is_reported(backend: BackendFactory) -> None:
    """An unknown switch, and a condition that never becomes true, fail with a reason."""
    with pytest.raises(AssertionError, match="ended before it served"):
        backend(no_such_switch=True)
    with pytest.raises(AssertionError, match=r"not true within 0\.01 s"):
        eventually(lambda: None, 0.01)


@pytest.mark.once
def test_plugin_is_loaded_only_where_it_is_named(tmp_path: Path) -> None:
    """A test module loads the plugin, without a warning; pytest does not load it by itself."""
    (tmp_path / "test_mine.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # others take seconds to load
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    loaded = importlib.metadata.entry_points(group="pytest11")
    assert [each.value for each in loaded if each.value.startswith("monitor_plugin")] == []


def test_end_group_kills_the_group_and_no_other_process(spawner: Spawner) -> None:
    """A reaped process's group is killed, but not a new process with its PID."""
    process = spawner.process("sh", "-c", "sleep 1000 >&2 & echo $!")
    output, _ = process.communicate(timeout=60)
    child = int(output)
    assert is_running(child)
    end_group(process)
    eventually(lambda: not is_running(child))
    stranger = spawner.sleeper()
    process.pid = stranger.pid
    end_group(process)
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(0.5)
