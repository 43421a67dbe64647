"""A real systemd in namespaces of its own, which starts nothing but the units of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..support import Spawner, eventually

SYSTEMD = Path("/lib/systemd/systemd")

# systemd would use the /run of the machine, and might empty its /tmp, in which the code under test
# may be. The target has no default dependencies: with them, systemd would set up the machine.
BOOT = """
set -e
mount --make-rprivate /
for folder in /run /var/log; do mount -t tmpfs tmpfs $folder; done
for folder in /tmp /var/tmp; do
    mount --bind $folder $folder
    mount -o remount,bind,ro $folder
done
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system
printf '[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n' >/run/systemd/system/test.target
exec /lib/systemd/systemd --system --unit=test.target
"""


class Systemd:
    """A running systemd, whose control groups are below a group of its own.

    Its processes are seen from outside, with other PIDs than inside.
    """

    def __init__(self) -> None:
        root = Path("/sys/fs/cgroup")
        second = root if (root / "cgroup.controllers").exists() else root / "unified"
        self._group = second / f"monitor-plugin-test-{os.getpid()}-systemd"
        self._spawner = Spawner()

    def start(self) -> Systemd:
        """Boot; skip the test where that cannot be done."""
        if os.geteuid() or not SYSTEMD.exists() or not shutil.which("nsenter"):
            pytest.skip("needs root, systemd and nsenter")
        try:
            self._group.mkdir()
        except OSError as error:
            pytest.skip(f"no control group of version 2 can be made here: {error}")
        isolated = "unshare --fork --pid --mount --cgroup --uts --ipc --kill-child"
        process = self._spawner.process(
            *("sh", "-c", f'echo $$ >"$0/cgroup.procs"; exec {isolated} bash -c "$1"'),
            *(str(self._group), BOOT),
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "container": "other"},
        )

        def is_running() -> bool:
            if process.poll() is not None:
                assert process.stdout
                pytest.skip(f"systemd cannot run here: {process.stdout.read()}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if not children:
                return False
            self._init = children[0]
            return self.run("systemctl", "is-system-running", check=False) == "running"

        eventually(is_running)
        return self

    def enter(self, *command: str) -> list[str]:
        """Return the command that runs a command in the namespaces."""
        return ["nsenter", "-t", self._init, "-m", "-p", "-C", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the namespaces; return its output."""
        done = subprocess.run(
            self.enter(*command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert not check or not done.returncode, done
        return done.stdout.strip()

    def main_pid(self, unit: str) -> int:
        """Return the PID, as seen from outside, of a unit's main process."""
        inner = self.run("systemctl", "show", "-P", "MainPID", unit)
        for path in self._group.glob(f"**/{unit}.service/cgroup.procs"):
            for pid in path.read_text().split():
                status = Path(f"/proc/{pid}/status").read_text()
                if status.partition("NSpid:")[2].split("\n")[0].split()[-1] == inner:
                    return int(pid)
        raise AssertionError(f"unit {unit} has no process {inner}")

    def close(self) -> None:
        """Kill systemd, and with it all processes of its PID namespace; remove its groups."""
        self._spawner.close()
        for folder, _, _ in os.walk(self._group, topdown=False):
            eventually(lambda folder=folder: _removed(Path(folder)))  # type: ignore[misc]


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):  # while processes in it end
        group.rmdir()
    return not group.exists()


def start_unit_command(name: str, *command: str, **environment: str) -> list[str]:
    """Return the command that starts a unit, which leaves its processes alone when it ends."""
    settings = ["Type=exec", "DefaultDependencies=no", "KillMode=process"]
    return [
        *("systemd-run", f"--unit={name}", "--collect", "--quiet"),
        *(f"--property={each}" for each in settings),
        *(f"--setenv={name}={value}" for name, value in environment.items()),
        *("--", *command),
    ]
