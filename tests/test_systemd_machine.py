"""The machine of systemd leaves the machine that runs the tests as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .support import Client, Spawner, eventually, free_port, is_running, read_line
from .systemd_machine import GROUPS, ROOT, SystemdMachine, remove_groups

pytestmark = pytest.mark.once

# What an operator may do by mistake, and systemd-tmpfiles does at each boot.
DESTROY = """
systemd-tmpfiles --clean --remove --create
rm -rf /tmp/* /var/tmp/* /run/user /etc/hosts
mount -t tmpfs tmpfs /mnt
hostname other
echo 1 >/proc/sys/vm/overcommit_memory
touch /root/new /dev/new
"""

BOOT = """
import time
from tests.systemd_machine import SystemdMachine
machine = SystemdMachine().start()
print(machine.init, flush=True)
time.sleep(1000)
"""


def state_of_machine(file: Path) -> dict[str, object]:
    hosts = Path("/etc/hosts")
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "file": file.read_text(),
        "hosts": hosts.exists() and hosts.read_text(),
        "hostname": os.uname().nodename,
        "overcommit": Path("/proc/sys/vm/overcommit_memory").read_text(),
        "new": [each for each in ("/dev/new", "/root/new") if Path(each).exists()],
    }


def groups_of(process: int) -> list[Path]:
    return list(GROUPS.glob(f"**/monitor-plugin-test-{process}-*"))


def test_machine_changes_nothing_outside(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    before = state_of_machine(file)
    machine = SystemdMachine()
    try:
        machine.start()
        machine.run("sh", "-c", DESTROY, check=False)
        assert not machine.path(str(file)).exists()
        assert groups_of(os.getpid())
        assert state_of_machine(file) == before
    finally:
        machine.close()
    assert not is_running(machine.init)
    assert not groups_of(os.getpid())
    assert state_of_machine(file) == before


def test_machine_runs_units_and_shows_their_processes(systemd_machine: SystemdMachine) -> None:
    """They have the project's sources, also as another user, and the network of the tests."""
    port = free_port()
    systemd_machine.write_unit(
        "served@.service",
        f"""
        [Service]
        User=nobody
        ExecStart="{sys.executable}" -m http.server --bind 127.0.0.1 %i
        WorkingDirectory={ROOT}
        """,
    )
    systemd_machine.reload()
    systemd_machine.run("systemctl", "start", f"served@{port}")
    pid = systemd_machine.main_pid(f"served@{port}")
    assert Path(f"/proc/{pid}").stat().st_uid == 65534
    eventually(lambda: b"setup.cfg" in read_page(port))
    systemd_machine.run("systemctl", "stop", f"served@{port}")
    assert not is_running(pid)


def read_page(port: int) -> bytes:
    try:
        return Client(f"http://127.0.0.1:{port}").request("GET", "/").body
    except ConnectionError:
        return b""


def test_machine_ends_with_the_process_that_booted_it(
    systemd_machine: SystemdMachine, spawner: Spawner
) -> None:
    process = spawner.python(BOOT, cwd=ROOT)
    init = int(read_line(process))
    process.kill()
    eventually(lambda: not is_running(init))
    remove_groups(groups_of(process.pid))
