"""The examples for systemd in a real systemd: an unprivileged monitor, and a rule of polkit."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import LIGHT_BACKEND, Client, eventually, free_port, is_running, program
from ..systemd_machine import ROOT, SystemdMachine

pytestmark = [pytest.mark.slow, pytest.mark.once]

EXAMPLES = ROOT / "examples" / "systemd"
USER = "monitor-plugin"
UNITS = ("monitor-plugin.service", "llama@.service")
# The rating of `systemd-analyze security`, of 100; `systemd-analyze` calls up to 49 "OK".
MAX_EXPOSURE = 20

# The interpreter and the package lie in folders that the units hide.
VISIBLE = f"""
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={" ".join({str(ROOT), sys.prefix, sys.base_prefix})}
"""


class Examples:
    """A machine in which the examples are installed as the documentation says.

    Attributes:
        machine: the machine.
        client: asks the monitor.
    """

    def __init__(self, machine: SystemdMachine) -> None:
        self.machine = machine
        listen = f"127.0.0.1:{free_port()}"
        self.client = Client(f"http://{listen}")
        for name in UNITS:
            self._copy(name, f"/etc/systemd/system/{name}")
            machine.write_unit(f"{name}.d/visible.conf", VISIBLE)
        self._copy("sysusers.conf", "/etc/sysusers.d/monitor-plugin.conf")
        self._copy("polkit.rules", "/etc/polkit-1/rules.d/50-monitor-plugin.rules")
        self._write("/etc/monitor-plugin.conf", f"MONITOR_LISTEN={listen}\n")
        command = f'#!/bin/sh\nexec {sys.executable} -m monitor_plugin.cli "$@"\n'
        self._write("/opt/monitor-plugin/bin/monitor-plugin", command, 0o755)
        self._write("/usr/local/bin/llama-server", "#!/bin/sh\n", 0o755)
        machine.run("systemd-sysusers")
        machine.reload()

    def _copy(self, name: str, target: str) -> None:
        self._write(target, (EXAMPLES / name).read_text())

    def _write(self, target: str, text: str, mode: int = 0o644) -> None:
        path = self.machine.path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def start_backend(self, file: str, model: str, unit: str) -> int:
        """Write a unit, or a part of one, that serves, and start it.

        Returns:
            Its PID, as in the machine, once the monitor has registered it.
        """
        address = f"127.0.0.1:{free_port()}"
        text = f"""
        [Service]
        Environment=MONITOR_MODEL={model} MONITOR_ADDRESS={address}
        ExecStart=
        ExecStart={LIGHT_BACKEND} --addr {address}
        """
        self.machine.write_unit(file, text)
        self.machine.reload()
        self.machine.run("systemctl", "restart", unit)
        pid = int(self.machine.show(unit, "MainPID"))
        eventually(lambda: pid in self.pids(model))
        return pid

    def pids(self, model: str) -> list[int]:
        backends = self.client.request("GET", "/backends").json["backends"]
        return [each["pid"] for each in backends if each["model"] == model]


@pytest.fixture(scope="module")
def examples(systemd_machine: SystemdMachine) -> Iterator[Examples]:
    program("pkaction")
    examples = Examples(systemd_machine)
    try:
        systemd_machine.run("systemctl", "start", USER)
        yield examples
    finally:  # pytest shows it if a test fails
        print(systemd_machine.run("journalctl", "--no-pager", f"--unit={USER}"))


@pytest.mark.parametrize("name", UNITS)
def test_units_are_valid_and_hardened(examples: Examples, name: str) -> None:
    machine = examples.machine
    assert machine.run("sh", "-c", f"systemd-analyze verify {name} 2>&1") == ""
    threshold = f"--threshold={MAX_EXPOSURE}"
    # Without the part of the test that makes the sources visible.
    file = f"/etc/systemd/system/{name}"
    machine.run("systemd-analyze", "security", "--offline=true", threshold, file)


def test_documented_lines_are_enough_for_root(examples: Examples) -> None:
    page = (ROOT / "docs" / "how-to" / "systemd.md").read_text()
    lines = page.partition("<!-- systemd -->\n```ini\n")[2].partition("```")[0]
    listen = f"127.0.0.1:{free_port()}"
    setting = f"Environment=MONITOR_LISTEN={listen}"
    machine = examples.machine
    machine.write_unit("documented.service", lines)
    machine.write_unit("documented.service.d/test.conf", f"[Service]\n{setting}\n")
    assert machine.run("sh", "-c", "systemd-analyze verify documented.service 2>&1") == ""
    machine.reload()
    machine.run("systemctl", "start", "documented")
    assert Client(f"http://{listen}").request("GET", "/readyz").json == {"status": "ready"}
    machine.run("systemctl", "stop", "documented")


def test_monitor_is_ready_once_it_is_started(examples: Examples) -> None:
    """`systemctl start` has waited for that, as the unit has `Type=notify`."""
    assert examples.client.request("GET", "/readyz").status == 200
    pid = examples.machine.main_pid("monitor-plugin")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nCapPrm:\t0000000000000000\n" in status
    assert Path(f"/proc/{pid}").stat().st_uid == int(examples.machine.run("id", "-u", USER))


def test_rule_lets_the_monitor_stop_and_start_a_backend(examples: Examples) -> None:
    """The unit has `Restart=always`; the log is that of the journal."""
    pid = examples.start_backend("llama@.service.d/backend.conf", "llama", "llama@1.service")
    log = examples.client.request("GET", f"/backend/log?model=llama&pid={pid}")
    assert log.json["text"].startswith("serving on "), log
    assert examples.client.shutdown("llama").status == 200
    assert examples.machine.show("llama@1", "ActiveState") == "inactive"
    assert examples.client.request("POST", "/backend/load", {"model": "llama"}).status == 200
    assert examples.machine.show("llama@1", "ActiveState") == "active"
    assert examples.pids("llama") == [int(examples.machine.show("llama@1", "MainPID"))]


def test_stop_without_the_right_fails_and_signals_nothing(examples: Examples) -> None:
    pid = examples.start_backend("other.service", "other", "other.service")
    answer = examples.client.shutdown("other")
    assert (answer.status, answer.json["error"]["type"]) == (500, "shutdown_failed")
    assert "polkit" in answer.json["error"]["message"]
    assert examples.machine.show("other", "MainPID") == str(pid)
    assert examples.machine.show("other", "ActiveState") == "active"
    assert examples.client.monitor("other").json["state"] == 2


def test_reload_reaches_the_monitor(examples: Examples) -> None:
    pid = examples.machine.show("monitor-plugin", "MainPID")
    examples.machine.run("systemctl", "reload", "monitor-plugin")
    eventually(lambda: examples.machine.show("monitor-plugin", "SubState") == "running")
    assert examples.machine.show("monitor-plugin", "MainPID") == pid


def test_monitor_that_hangs_is_started_again(examples: Examples) -> None:
    examples.machine.write_unit("monitor-plugin.service.d/soon.conf", "[Service]\nWatchdogSec=5\n")
    examples.machine.reload()
    examples.machine.run("systemctl", "restart", "monitor-plugin")
    pid = examples.machine.main_pid("monitor-plugin")
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: examples.machine.show("monitor-plugin", "NRestarts") == "1")
    eventually(lambda: examples.machine.show("monitor-plugin", "ActiveState") == "active")
    assert examples.client.request("GET", "/readyz").status == 200
    assert not is_running(pid)
    examples.machine.run("systemctl", "stop", "monitor-plugin")
    assert examples.machine.show("monitor-plugin", "Result") == "success"
    log = examples.machine.run("journalctl", "--no-pager", "--output=cat", "--unit=monitor-plugin")
    assert "does not ask systemd" not in log
