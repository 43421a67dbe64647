from __future__ import annotations

import errno
import os
import sys

import pytest

from monitor_plugin import Monitor, Settings
from monitor_plugin.processes.kernel import KernelProbe

from ..support import Spawner, descriptors, logged, refuse_descriptors
from .test_process import ROOT

ALL = ("pidfd_send_signal", "epoll_ctl", "waitid(P_PIDFD)", "PIDFD_GET_INFO")

PROBE = """
import logging, sys
from monitor_plugin.processes.kernel import KernelProbe
from tests.seccomp import refuse
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
refuse(REFUSED)
probe = KernelProbe()
probe.run()
probe.run()
print(*(each.refused for each in probe.fallbacks), sep=", ")
"""


def _probe(spawner: Spawner, refused: dict[str, int]) -> list[str]:
    child = spawner.python(PROBE.replace("REFUSED", repr(refused)), cwd=ROOT)
    return child.communicate(timeout=60)[0].splitlines()


@pytest.mark.parametrize(
    ("refused", "line"),
    [
        (
            {"pidfd_open": errno.ENOSYS},
            "pidfd_open (Function not implemented): the ends of processes are noticed by polling, "
            "and signals are sent by kill after a comparison of creation times",
        ),
        (
            {"pidfd_send_signal": errno.EPERM},
            "pidfd_send_signal (Operation not permitted): signals are sent by kill",
        ),
        (
            {"epoll_ctl": errno.EPERM},
            "epoll_ctl for pidfds (Operation not permitted): "
            "the ends of processes are noticed by polling",
        ),
        (
            {"waitid(P_PIDFD)": errno.EINVAL},
            "waitid for pidfds (Invalid argument): waitid gets PIDs",
        ),
        (
            {"PIDFD_GET_INFO": errno.EPERM},
            "PIDFD_GET_INFO (Operation not permitted): "
            "the exit code of a process that was reaped is known from the host alone",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_refusal_is_logged_once(spawner: Spawner, refused: dict[str, int], line: str) -> None:
    """A second `run` logs nothing."""
    *logged_lines, found = _probe(spawner, refused)
    assert logged_lines == [f"WARNING the kernel refuses {line}"]
    assert found == line.partition(" (")[0]


def test_all_refusals_are_found(spawner: Spawner) -> None:
    """Without pidfds, what is done with them is not tried."""
    *lines, found = _probe(spawner, dict.fromkeys(ALL, errno.EPERM))
    assert len(lines) == len(found.split(", ")) == len(ALL)
    *lines, found = _probe(spawner, dict.fromkeys((*ALL, "pidfd_open"), errno.EPERM))
    assert (len(lines), found) == (1, "pidfd_open")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts files over those of /proc")
def test_what_gvisor_lacks_is_found(spawner: Spawner) -> None:
    """It has no pidfds and no smaps_rollup, and writes 0 for addresses and exit codes."""
    as_gvisor = """
import os, pathlib, subprocess
folder = pathlib.Path("/proc", str(os.getpid()))
before, _, after = (folder / "stat").read_text().rpartition(")")
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
(folder / "stat").write_text(" ".join([before + ")", *after.split()[:23], *["0"] * 27]))
"""
    code = as_gvisor + PROBE.replace("REFUSED", repr({"pidfd_open": errno.ENOSYS}))
    child = spawner.process("unshare", "--mount", sys.executable, "-c", code, cwd=ROOT)
    lines = child.communicate(timeout=60)[0].splitlines()
    if not lines:
        pytest.skip("mount namespaces are not allowed here")
    pidfds, memory, exit_codes, found = lines
    assert "polling" in pidfds
    assert "No such file" in memory
    assert "RSS" in memory
    assert "child processes alone" in exit_codes
    assert found == "pidfd_open, /proc/PID/smaps_rollup, exit codes in /proc/PID/stat"


def test_an_older_kernel_without_exit_information_is_not_logged(spawner: Spawner) -> None:
    """Most kernels in use do not have that ioctl."""
    assert _probe(spawner, {"PIDFD_GET_INFO": errno.ENOTTY}) == [""]


def test_python_without_pidfds_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if it had been built with the headers of an older kernel."""
    monkeypatch.delattr(os, "pidfd_open")
    before = descriptors()
    with Monitor(Settings(listen=None)) as monitor:
        monitor.start()
    (line,) = [each for each in logged(caplog) if "the kernel refuses" in each]
    assert line.startswith("the kernel refuses pidfd_open (this Python was built for an older")
    assert not descriptors() - before


def test_a_lack_of_descriptors_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe then fails, and its next run probes."""
    before = descriptors()
    probe = KernelProbe()
    with monkeypatch.context() as patch:
        refuse_descriptors(patch, os, "pidfd_open")
        with pytest.raises(OSError, match="open files"):
            probe.run()
    probe.run()
    assert not descriptors() - before
