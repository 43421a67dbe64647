from __future__ import annotations

import pytest

from monitor_plugin.processes.process import Process
from monitor_plugin.processes.resource_trackers import command_grace_seconds, tracker_grace_seconds

from ..support import Spawner, eventually, is_running

FLAGS = ["python3", "-B", "-S", "-I", "-c"]


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ([*FLAGS, "from multiprocessing.resource_tracker import main;main(5)"], 1),
        ([*FLAGS, "from multiprocessing.semaphore_tracker import main;main(5)"], 1),
        ([*FLAGS, "from loky.backend.resource_tracker import main; main(5, False)"], 1),
        ([*FLAGS, "from joblib.externals.loky.backend.resource_tracker import main; main(5)"], 1),
        (["torch_shm_manager"], 3),
        (["/venv/lib/python3.11/site-packages/torch/bin/torch_shm_manager"], 3),
        (["python3", "/venv/bin/torch_shm_manager"], 3),
        ([*FLAGS, "from multiprocessing.spawn import spawn_main; spawn_main()"], None),
        ([*FLAGS, "import multiprocessing.resource_tracker"], None),
        (["python3", "server.py", "--manager", "torch_shm_manager"], None),
        ([""], None),
        ([], None),
    ],
)
def test_trackers_are_recognised_by_their_command_line(
    arguments: list[str], seconds: float | None
) -> None:
    """Those of Python, loky and torch; no other process is one."""
    assert command_grace_seconds(arguments) == seconds


def test_a_process_that_has_ended_is_no_tracker(spawner: Spawner) -> None:
    """Nothing is raised."""
    process = spawner.process("bash", "-c", "exec -a torch_shm_manager sleep 1000")
    with Process(process.pid) as handle:
        eventually(lambda: tracker_grace_seconds(handle) == 3)
        process.kill()
        eventually(lambda: not is_running(process.pid))
        assert tracker_grace_seconds(handle) is None
        process.wait()
        assert tracker_grace_seconds(handle) is None
