"""A whole monitor in a process with a real seccomp filter, which refuses system calls."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from ..support import Spawner

ROOT = Path(__file__).parents[2]

# One backend ignores SIGTERM, as its child does, and is stopped. The other one ends by itself.
SCENE = """
import json, subprocess, sys
from monitor_plugin import Monitor, Settings, hookimpl
from monitor_plugin.testing import eventually
from tests.seccomp import refuse
from tests.support import is_running, register

exits = {}

class Plugin:
    @hookimpl
    def monitor_backend_gone(self, backend, exit):
        exits[backend.model] = [exit.cause, exit.exit_code, exit.signal]

def start(script):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(["sh", "-c", script], start_new_session=True, **pipes)

refuse(json.loads(sys.argv[1]))
stubborn = start("trap '' TERM; sleep 1000 & echo $!; wait")
child = int(stubborn.stdout.readline())
brief = start("read line; exit 7")
settings = Settings(listen=None, stop_timeout_seconds=0.5, respawn_watch_seconds=0.0)
with Monitor(settings, [Plugin()]) as monitor:
    for number, (model, process) in enumerate({"stubborn": stubborn, "brief": brief}.items(), 1):
        register(monitor, process.pid, model, f"127.0.0.1:{number}")
    observed = eventually(
        lambda: next((each for each in monitor.sweep("stubborn") if each.memory_source == "pss"), 0)
    )
    brief.stdin.close()
    eventually(lambda: "brief" in exits)
    monitor.shutdown("stubborn")
    eventually(lambda: "stubborn" in exits)
for process in (stubborn, brief):
    process.wait()
running = [pid for pid in (stubborn.pid, child) if is_running(pid)]
print(json.dumps([exits, running, observed.memory_source, observed.tree.processes]))
"""


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
@pytest.mark.parametrize(
    "refused", [("pidfd_open",), ("pidfd_send_signal",), ("pidfd_send_signal", "waitid(P_PIDFD)")]
)
def test_backends_are_read_and_stopped_whatever_is_refused(
    spawner: Spawner, refused: tuple[str, ...], error: int
) -> None:
    """Ends are noticed, with their codes; the whole tree is stopped; each refusal is logged."""
    child = spawner.python(SCENE, json.dumps(dict.fromkeys(refused, error)), stderr=-1, cwd=ROOT)
    output, errors = child.communicate(timeout=60)
    assert json.loads(output) == [
        {"brief": ["exited", 7, None], "stubborn": ["shutdown", None, 9]},
        [],
        "pss",
        2,
    ]
    lines = errors.splitlines()
    assert len(lines) == len(refused)
    for line, name in zip(lines, refused, strict=True):
        assert line.startswith(f"the kernel refuses {name.replace('(P_PIDFD)', ' for pidfds')} (")
