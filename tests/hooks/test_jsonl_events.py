"""Events of real backends in a file, which rotates, and which may be unwritable."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Backend, PluginError, State

from ..support import Spawner, eventually
from .conftest import Hooked, MakeHooked

BACKEND = Backend("m", 4711, "127.0.0.1:1", 0.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def report_events(hook: Hooked, times: int = 1) -> None:
    for _ in range(times):
        hook.module.monitor_state_changed(BACKEND, State.UNINITIALIZED, State.READY)


def text(caplog: pytest.LogCaptureFixture) -> list[str]:
    name = "monitor_plugin_hooks.jsonl_events"
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_backend_events_are_written(hooked: MakeHooked, spawner: Spawner, tmp_path: Path) -> None:
    """State changes, exits and shutdowns, one line each; no other user can read the file."""
    path = tmp_path / "events.jsonl"
    one, other = spawner.backend(), spawner.backend("--busy-seconds", "1000")
    hook = hooked("jsonl_events", {"PATH": str(path)})
    hook.spawned("evil\u2028{}", one)
    hook.spawned("m", other)
    hook.monitor.read("m")
    other.process.kill()
    hook.monitor.shutdown("evil\u2028{}")
    eventually(lambda: len(lines(path)) == 5)  # the shutdown found a first state too
    state, *rest = lines(path)
    assert state.pop("at").endswith("Z")
    assert state == {
        "type": "state_changed",
        "model": "m",
        "pid": other.pid,
        "previous": None,
        "previous_name": "unknown",
        "current": 1,
        "current_name": "busy",
    }
    ends = {each["model"]: each for each in rest if each["type"] == "ended"}
    assert ends["m"].items() >= {"cause": "killed", "signal": 9, "signal_name": "SIGKILL"}.items()
    assert ends["evil\u2028{}"].items() >= {"cause": "shutdown", "pid": one.pid}.items()
    (shutdown,) = [each for each in rest if each["type"] == "shutdown_finished"]
    assert shutdown["outcome"] == "stopped"
    assert shutdown["seconds"] >= 0
    assert shutdown["freed"].pop("memory") > 0
    assert shutdown["freed"] == {"gpu": None, "gpu_left": None, "seconds": 0.0}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_actions_of_watchdogs_are_written(
    hooked: MakeHooked, spawner: Spawner, tmp_path: Path
) -> None:
    """The line has the watchdog, the action and the reason."""
    path = tmp_path / "events.jsonl"
    hook = hooked("jsonl_events", {"PATH": str(path)})
    hook.spawned("m", spawner.backend_served_here())
    (backend,) = hook.monitor.backends()
    hook.monitor.report_watchdog(backend, "idle_stop", "tell", "it was idle for 5 s")
    eventually(lambda: path.exists() and lines(path))
    (line,) = lines(path)
    del line["at"]
    assert line == {
        "type": "watchdog",
        "model": "m",
        "pid": backend.pid,
        "watchdog": "idle_stop",
        "action": "tell",
        "reason": "it was idle for 5 s",
    }


def test_processes_left_behind_are_written(hooked: MakeHooked, tmp_path: Path) -> None:
    """With their PIDs."""
    path = tmp_path / "events.jsonl"
    hook = hooked("jsonl_events", {"PATH": str(path)})
    hook.module.monitor_backend_left_behind(BACKEND, (7, 8))
    (line,) = lines(path)
    assert (line["type"], line["pid"], line["pids"]) == ("left_behind", BACKEND.pid, [7, 8])


def test_file_rotates(hooked: MakeHooked, tmp_path: Path) -> None:
    """Files contain complete lines up to the maximum size; some old files are kept."""
    path = tmp_path / "events.jsonl"
    hook = hooked("jsonl_events", {"PATH": str(path), "MAX_BYTES": "500", "BACKUPS": "2"})
    report_events(hook, 12)
    assert sorted(each.name for each in tmp_path.glob("events*")) == [
        "events.jsonl",
        "events.jsonl.1",
        "events.jsonl.2",
    ]
    for each in tmp_path.glob("events*"):
        assert 0 < each.stat().st_size <= 500
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert {line["previous_name"] for line in lines(each)} == {"uninitialized"}
    newest = lines(path)[-1]["at"]
    assert newest > lines(tmp_path / "events.jsonl.1")[-1]["at"]
    assert (
        lines(tmp_path / "events.jsonl.1")[0]["at"] > lines(tmp_path / "events.jsonl.2")[-1]["at"]
    )


def test_moved_file_is_created_again(hooked: MakeHooked, tmp_path: Path) -> None:
    """logrotate may move the file; no signal is needed."""
    path = tmp_path / "events.jsonl"
    hook = hooked("jsonl_events", {"PATH": str(path)})
    report_events(hook)
    path.rename(tmp_path / "old")
    report_events(hook)
    assert len(lines(path)) == len(lines(tmp_path / "old")) == 1


def test_missing_folder_is_logged_once(
    hooked: MakeHooked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are written again when the folder exists again."""
    folder = tmp_path / "log"
    folder.mkdir()
    hook = hooked("jsonl_events", {"PATH": str(folder / "events.jsonl")})
    report_events(hook)
    shutil.rmtree(folder)
    report_events(hook, 3)
    assert len(text(caplog)) == 1
    assert "events are lost: No such file or directory" in text(caplog)[0]
    folder.mkdir()
    report_events(hook, 2)
    assert len(lines(folder / "events.jsonl")) == 2
    assert len(text(caplog)) == 2
    assert "written again; 3 were lost" in text(caplog)[1]


def test_full_disk_is_logged_once(hooked: MakeHooked, caplog: pytest.LogCaptureFixture) -> None:
    """/dev/full behaves as a full disk."""
    hook = hooked("jsonl_events", {"PATH": "/dev/full"})
    report_events(hook, 3)
    assert len(text(caplog)) == 1
    assert "/dev/full: events are lost: No space left on device" in text(caplog)[0]


def test_full_pipe_is_logged_once(
    hooked: MakeHooked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full pipe does not block the hook, and contains complete lines."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        hook = hooked("jsonl_events", {"PATH": str(tmp_path / "pipe")})
        report_events(hook, 60)
        (message,) = text(caplog)
        assert message.endswith("/pipe: events are lost: Resource temporarily unavailable")
        for line in os.read(reader, 4096).splitlines():
            assert json.loads(line)["type"] == "state_changed"
    finally:
        os.close(reader)


def test_incomplete_line_is_removed(hooked: MakeHooked, tmp_path: Path) -> None:
    """A partly written line is truncated."""
    path = tmp_path / "events.jsonl"
    hook = hooked("jsonl_events", {"PATH": str(path)})
    report_events(hook)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        report_events(hook)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    report_events(hook)
    assert len(lines(path)) == 2


@pytest.mark.parametrize(
    ("hook_settings", "why"),
    [
        ({"PATH": "/no/folder/file"}, "_PATH='/no/folder/file': No such file or directory; write "),
        ({"PATH": "/tmp"}, "_PATH='/tmp': Is a directory; write the path of a file"),
        (
            {"MAX_BYTES": "10 MiBs"},
            "_MAX_BYTES='10 MiBs': it is not a number of bytes; write",
        ),
        ({"BACKUPS": "none"}, "_BACKUPS='none': it must be an integer of at least 1; write"),
    ],
)
def test_invalid_settings_are_refused(
    hook_settings: dict[str, str], why: str, hooked: MakeHooked, tmp_path: Path
) -> None:
    """Loading the file raises an error with the expected value."""
    with pytest.raises(PluginError) as raised:
        hooked("jsonl_events", {"PATH": str(tmp_path / "file"), **hook_settings})
    assert f"MONITOR_HOOK_JSONL_EVENTS{why}" in str(raised.value)


def test_hook_does_nothing_without_a_path(hooked: MakeHooked) -> None:
    """All shipped hooks can be loaded together without settings."""
    report_events(hooked("jsonl_events", {}))
