"""Logs that are read from the journal of a real systemd."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from monitor_plugin.hosts.systemd.logs import UnitLogs, streams_in_journal

from ...support import eventually, logged
from ...systemd_machine import SystemdMachine

pytestmark = pytest.mark.once

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534")


@pytest.fixture
def logs(systemd_machine: SystemdMachine) -> UnitLogs:
    return UnitLogs(60.0, systemd_machine.enter("journalctl"))


def run_unit(machine: SystemdMachine, name: str, script: str) -> str:
    """Run a script in a unit until the journal has its output; return the unit's invocation.

    The journal does not learn the invocation of a process if systemd has forgotten the unit before.
    """
    written = machine.path(f"/run/{name}")
    written.unlink(missing_ok=True)
    script = f"{{ {script}\n}}; echo >/run/{name}; exec sleep 1000"
    machine.run("systemd-run", f"--unit={name}", "--quiet", "sh", "-c", script)
    eventually(written.exists)
    machine.run("journalctl", "--sync")
    invocation = machine.show(name, "InvocationID")
    machine.run("systemctl", "stop", name)
    return invocation


def test_journal_gives_both_streams_of_an_invocation(
    systemd_machine: SystemdMachine, logs: UnitLogs
) -> None:
    """It has no line of the next invocation, nor what systemd says about the unit."""
    first = run_unit(systemd_machine, "streams", "echo one; echo two >&2; echo three")
    second = run_unit(systemd_machine, "streams", "echo four")
    run_unit(systemd_machine, "other", "echo five; logger six")
    assert logs.read(first, 1000) == b"one\ntwo\nthree\n"
    assert logs.read(second, 1000) == b"four\n"
    assert logs.read("0" * 32, 1000) == b""


def test_journal_gives_any_bytes(systemd_machine: SystemdMachine, logs: UnitLogs) -> None:
    """A value may be no text, have an equals sign, or be longer than journald's LineMax=."""
    script = r"""
    printf 'x%.0s' $(seq 120000)
    printf '\nMESSAGE=a\033b\377\n=\n\nnot finished'
    """
    invocation = run_unit(systemd_machine, "bytes", script)
    end = b"\nMESSAGE=a\033b\xff\n=\nnot finished\n"
    assert logs.read(invocation, 1 << 20) == 120_000 * b"x" + end
    assert logs.read(invocation, 40) == (120_000 * b"x" + end)[-40:]
    assert logs.read(invocation, 1) == b"\n"


def test_long_log_is_read_from_its_end(systemd_machine: SystemdMachine, logs: UnitLogs) -> None:
    """journalctl would write more than a pipe holds."""
    invocation = run_unit(systemd_machine, "long", "seq 5000")
    assert logs.read(invocation, 12) == b"8\n4999\n5000\n"


def test_invocation_of_a_forgotten_unit_is_found(
    systemd_machine: SystemdMachine, logs: UnitLogs
) -> None:
    first = run_unit(systemd_machine, "gone", 'echo "$$$$" >/run/pid; echo once')
    pid = int(systemd_machine.path("/run/pid").read_text())
    second = run_unit(systemd_machine, "gone", "echo again")
    assert systemd_machine.show("gone", "LoadState") == "not-found"
    assert logs.find_invocation("gone.service") == second
    assert logs.find_invocation("gone.service", pid) == first
    assert logs.find_invocation("gone.service", 4_000_000) is None
    assert logs.find_invocation("never.service") is None


def test_log_of_a_users_unit_is_read(systemd_machine: SystemdMachine, logs: UnitLogs) -> None:
    """The journal learns the invocation from a file that the user's manager writes."""
    systemd_machine.run("systemctl", "start", "user@65534")
    known = "/run/user/65534/systemd/units/invocation:users.service"
    script = f"until [ -L {known} ]; do sleep 0.01; done; echo mine; echo >/tmp/users; sleep 1000"
    systemd_machine.run(
        *(*AS_NOBODY, "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/65534"),
        *("systemd-run", "--user", "--unit=users", "--quiet", "sh", "-c", script),
    )
    eventually(systemd_machine.path("/tmp/users").exists)
    systemd_machine.run("journalctl", "--sync")
    invocation = logs.find_invocation("users.service", is_user_unit=True)
    assert systemd_machine.run("readlink", known) == invocation
    assert invocation
    assert logs.read(invocation, 1000) == b"mine\n"


def test_journal_that_may_not_be_read_is_logged_once(
    systemd_machine: SystemdMachine, caplog: pytest.LogCaptureFixture
) -> None:
    """A user in the group systemd-journal may read it."""
    invocation = run_unit(systemd_machine, "secret", "echo hello")
    journalctl = (*AS_NOBODY, "--clear-groups", "journalctl")
    forbidden = UnitLogs(60.0, systemd_machine.enter(*journalctl))
    assert forbidden.read(invocation, 100) is None
    assert forbidden.find_invocation("secret.service") is None
    (line,) = logged(caplog)
    assert "insufficient permissions" in line
    assert "group systemd-journal" in line
    journalctl = (*AS_NOBODY, "--groups=systemd-journal", "journalctl")
    assert UnitLogs(60.0, systemd_machine.enter(*journalctl)).read(invocation, 100) == b"hello\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("sh", "-c", "exec sleep 1000"), "takes longer than 0.1 s"),
        (("sh", "-c", "echo sorry >&2; exit 3"), "sorry"),
        (("sh", "-c", "echo MESSAGE=x; exit 4"), "exited with code 4"),
        (("/no/such/journalctl",), "No such file"),
    ],
)
def test_failed_call_is_no_log(
    command: tuple[str, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = threading.active_count()
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    assert UnitLogs(0.1, command).read("0" * 32, 100) is None
    assert [reason in line for line in logged(caplog)] == [True]
    eventually(lambda: threading.active_count() <= threads)
    assert Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text() == children


def test_journalctl_ends_when_enough_is_read() -> None:
    endless = UnitLogs(60.0, ("sh", "-c", r"while printf 'MESSAGE=line\n\n'; do :; done"))
    assert endless.read("0" * 32, 10) == b"line\nline\n"


@pytest.mark.parametrize(
    ("output", "error", "streams"),
    [
        ("journal", "inherit", {"stdout", "stderr"}),
        ("journal+console", "null", {"stdout"}),
        ("file", "journal", {"stderr"}),
        ("inherit", "inherit", set()),
        ("null", "inherit", set()),
    ],
)
def test_streams_that_go_to_the_journal(output: str, error: str, streams: set[str]) -> None:
    assert streams_in_journal(output, error) == streams
