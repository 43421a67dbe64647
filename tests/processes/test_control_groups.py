"""For how long the control groups of a process are known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from monitor_plugin.processes.control_group_files import Group
from monitor_plugin.processes.control_groups import ControlGroups
from monitor_plugin.processes.process_table import TICKS_PER_SECOND

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("path", "is_exclusive"),
    [
        ("/system.slice/llama@1.service", True),
        ("/system.slice/system-llama.slice/llama@1.service", True),
        ("/user.slice/user-0.slice/user@0.service/app.slice/llama.service", True),
        ("/system.slice/docker-0a1b.scope", True),
        ("/user.slice/user-0.slice/user@0.service/user.slice/libpod-0a1b.scope", True),
        ("/docker/0a1b", True),
        ("/system.slice", False),
        ("/system.slice/system-llama.slice", False),
        ("/init.scope", False),
        ("/user.slice/user-0.slice/session-1.scope", False),
        ("/user.slice/user-0.slice/user@0.service/app.slice/x.scope", False),
        ("/user.slice/user-0.slice/user@0.service/app.slice/app-term.slice/x.scope", False),
        ("/user.slice/user-0.slice/user@0.service/init.scope", False),
    ],
)
@pytest.mark.parametrize("prefix", ["0::", "1:name=systemd:"])
def test_slices_and_sessions_are_no_backends_own(
    tmp_path: Path, path: str, is_exclusive: bool, prefix: str
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"{prefix}{path}\n")
    assert bool(ControlGroups(tmp_path).of(7, 0.0).exclusive) == is_exclusive


@pytest.mark.parametrize(
    ("ran_seconds", "later_seconds", "is_read_again"),
    [(2, 1, False), (2, 3, True), (900, 59, False), (900, 61, True)],
)
def test_groups_of_a_young_process_are_read_again_soon(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran_seconds: float,
    later_seconds: float,
    is_read_again: bool,
) -> None:
    """Hosts move a process to its group after its start."""
    now = 1000.0
    monkeypatch.setattr(time, "clock_gettime", lambda _: now)
    started = (now - ran_seconds) * TICKS_PER_SECOND
    file = tmp_path / "7" / "cgroup"
    file.parent.mkdir()
    file.write_text("0::/before\n")
    groups = ControlGroups(tmp_path)
    assert groups.of(7, started).own == {Group("", "/before")}
    file.write_text("0::/after\n")
    now += later_seconds
    expected = "/after" if is_read_again else "/before"
    assert groups.of(7, started).own == {Group("", expected)}
