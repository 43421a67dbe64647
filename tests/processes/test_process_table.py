from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from monitor_plugin.processes.process_table import (
    find_descendants,
    read_ancestry,
    read_row,
    take_snapshot,
)

from ..support import Spawner, eventually, read_line


def test_a_row_has_parent_session_and_start_time(spawner: Spawner) -> None:
    """The start time of a process is the same each time it is read."""
    sleeper = spawner.sleeper()
    row = read_row(sleeper.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), sleeper.pid)
    again = read_row(sleeper.pid)
    assert again is not None
    assert again[:3] == row[:3]
    own = read_row(os.getpid())
    assert own is not None
    assert (own.parent, own.session) == (os.getppid(), os.getsid(0))
    assert own.started <= row.started


@pytest.mark.parametrize(
    "name", ["a b", "(x)", ") R 1 1 (", "x) Z 7 7 7 (", "a\nb", "((", "))", "é", "\\"]
)
def test_stat_parser_accepts_any_process_name(spawner: Spawner, tmp_path: Path, name: str) -> None:
    """A program's name may hold spaces, parentheses and line breaks."""
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    sleeper = spawner.process(str(program), "1000")
    comm = name.encode()[:15]
    eventually(lambda: Path(f"/proc/{sleeper.pid}/comm").read_bytes() == comm + b"\n")
    row = read_row(sleeper.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), sleeper.pid)


def test_stat_parser_accepts_a_name_that_is_not_utf8(spawner: Spawner) -> None:
    """A process may give itself a name that is not UTF-8."""
    process = spawner.python(
        "import ctypes, time\n"
        "ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe(', 0, 0, 0)\n"
        "print('named', flush=True); time.sleep(1000)"
    )
    assert read_line(process) == "named"
    row = read_row(process.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), process.pid)


def test_a_process_that_does_not_exist_has_no_row(spawner: Spawner) -> None:
    """A process that was reaped, and a number that is no PID, have no row."""
    ended = spawner.process("true")
    ended.wait()
    for pid in (ended.pid, 2**22 + 1):
        assert read_row(pid) is None


def test_a_snapshot_holds_every_process(spawner: Spawner) -> None:
    """A snapshot holds all processes, also zombies."""
    sleeper, ended = spawner.sleeper(), spawner.process("true")
    eventually(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    rows = take_snapshot().rows
    for pid in (sleeper.pid, ended.pid, os.getpid(), os.getppid()):
        row = read_row(pid)
        assert row is not None
        assert rows[pid][:3] == row[:3]


def test_ancestry_begins_with_the_process() -> None:
    """PID 1 is left out, and a PID without a process has no row."""
    pids = [pid for pid, _ in read_ancestry(os.getpid())]
    assert pids == [
        each.pid for each in (psutil.Process(), *psutil.Process().parents()) if each.pid > 1
    ]
    assert list(read_ancestry(2**22 + 1)) == [(2**22 + 1, None)]
    assert list(read_ancestry(1)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts files over those of /proc")
def test_descendants_of_one_process_are_found(spawner: Spawner) -> None:
    """Also those that were started by a thread, and those of another session."""
    code = """
import subprocess, threading
start = lambda: subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], start_new_session=True)
threading.Thread(target=lambda: start().wait()).start()
start().wait()
"""
    process = spawner.python(code)
    assert process.stdout
    for _ in range(2):
        process.stdout.readline()
    expected = {each.pid for each in psutil.Process(process.pid).children(recursive=True)}
    assert len(expected) == 4
    try:
        found = find_descendants(process.pid)
        assert {pid for pid, _ in found} == expected
        assert all(read_row(pid).started == started for pid, started in found)  # type: ignore[union-attr]
    finally:
        for pid in expected:
            with contextlib.suppress(ProcessLookupError):  # a shell ends with its child
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert find_descendants(process.pid) == []


def test_reading_a_row_without_a_free_descriptor_is_an_error(spawner: Spawner) -> None:
    """Without a free descriptor it is unknown whether the process exists."""
    code = """
import os, resource
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process_table import read_row
assert read_row(os.getpid()) and read_row(2**22) is None
members = Members((os.getpid(), read_row(os.getpid()).started))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    print(read_row(os.getpid()))
except OSError as error:
    print(error.strerror)
print(MemberTable().read_rss(members), MemberTable().pids(members) == [os.getpid()])
"""
    process = spawner.python(code)
    assert process.stdout
    assert process.stdout.read().splitlines() == ["Too many open files", "None True"]
