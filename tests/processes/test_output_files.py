"""The files that processes write their output to."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin.domain.logs import LogTail
from monitor_plugin.processes import output_files
from monitor_plugin.processes.output_files import OutputFiles, OutputFileTable
from monitor_plugin.processes.process import Process

from ..support import Spawner, descriptors, eventually, read_line, send_line

WAIT = 'echo "$@" >&2; read _ || :'


@pytest.fixture
def table() -> Iterator[OutputFileTable]:
    """A table, in which the test must close all files of processes that have not ended."""
    before = descriptors()
    table = OutputFileTable()
    yield table
    table.close()
    left = {target for _, target in descriptors() - before if target.startswith("/")}
    assert (left, len(table)) == (set(), 0)


def start(spawner: Spawner, path: Path, script: str = WAIT) -> subprocess.Popen[str]:
    """Start a shell whose standard output is a pipe, and whose standard error is a file."""
    with path.open("a") as file:
        command = ("sh", "-c", script, "sh", "a word")
        return spawner.process(*command, stdin=subprocess.PIPE, stderr=file)


def read_text(files: OutputFiles, stream: str = "stderr") -> str | None:
    tail = files.read(stream, 4096)
    return None if tail is None else tail.data.decode()


def end(process: subprocess.Popen[str], files: OutputFiles) -> None:
    process.kill()
    process.wait()
    files.mark_ended()


def test_file_is_read_after_the_end_and_after_its_deletion(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path
) -> None:
    """A pipe is not read. The path may be another file by then."""
    process = start(spawner, tmp_path / "log")
    files = OutputFiles(Process(process.pid), table)
    eventually(lambda: read_text(files) == "a word\n")
    assert read_text(files, "stdout") is None
    assert files.describe_lack("stdout") == "it writes to a pipe"
    end(process, files)
    (tmp_path / "log").unlink()
    (tmp_path / "log").write_text("another file\n")
    assert read_text(files) == "a word\n"
    assert read_text(files, "stdout") is None
    files.close()
    assert read_text(files) is None
    assert files.describe_lack("stderr") == "it has ended, and its output was not kept open"


def test_only_the_end_of_a_huge_file_is_read(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path
) -> None:
    """A sparse file of 100 GB is read at its end, or after an offset near its end."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.seek(100 * 10**9)
        file.write(b"0123456789")
    process = start(spawner, path, "read _ || :")
    files = OutputFiles(Process(process.pid), table)
    size = 100 * 10**9 + 10
    assert files.read("stderr", 4) == LogTail(b"6789", size)
    assert files.read("stderr", 4, after=size - 2) == LogTail(b"89", size)
    assert files.read("stderr", 4, after=size) == LogTail(b"", size)
    for too_far in (0, size - 5, size + 1):
        assert files.read("stderr", 4, after=too_far) == LogTail(b"6789", size)
    end(process, files)


def test_both_streams_in_one_file_need_one_descriptor(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path
) -> None:
    """A host may start a backend with `2>&1`."""
    with (tmp_path / "log").open("w") as file:
        process = spawner.process(
            *("sh", "-c", "echo out; echo err >&2; read _"),
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
        )
    files = OutputFiles(Process(process.pid), table)
    assert len(table) == 1
    eventually(lambda: read_text(files, "stdout") == read_text(files) == "out\nerr\n")
    end(process, files)


def test_process_may_open_another_file(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path
) -> None:
    """A launcher redirects its output later; a program opens its log again after a rotation."""
    script = f"""
    read _; exec 2>>{tmp_path}/log; echo first >&2; echo; read _
    mv {tmp_path}/log {tmp_path}/log.1; exec 2>>{tmp_path}/log; echo second >&2; echo; read _
    """
    process = spawner.process("sh", "-c", script, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    files = OutputFiles(Process(process.pid), table)
    assert len(table) == 0
    for text in ("first\n", "second\n"):
        send_line(process)
        assert read_line(process) == ""
        files.refresh()
        assert len(table) == 1
        assert read_text(files) == text
    end(process, files)
    assert read_text(files) == "second\n"


@pytest.mark.parametrize("kind", ["terminal", "null", "fifo", "read-only", "o_path", "closed"])
def test_only_regular_files_that_the_process_writes_to_are_opened(
    kind: str, spawner: Spawner, table: OutputFileTable, tmp_path: Path
) -> None:
    """A process may hold a file that it may not read with O_PATH. Opening a FIFO would block."""
    path = tmp_path / "file"
    path.write_text("a secret")
    if kind == "terminal":
        main, number = pty.openpty()
        os.close(main)
    elif kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        number = os.open(tmp_path / "fifo", os.O_RDWR)
    elif kind == "null":
        number = os.open(os.devnull, os.O_WRONLY)
    else:
        number = os.open(path, os.O_PATH if kind == "o_path" else os.O_RDONLY)
    script = "exec 2>&-; echo ready; read _" if kind == "closed" else "echo ready; read _"
    process = spawner.process("sh", "-c", script, stdin=subprocess.PIPE, stderr=number)
    os.close(number)
    assert read_line(process) == "ready"
    files = OutputFiles(Process(process.pid), table)
    assert read_text(files) is None
    assert len(table) == 0
    assert files.describe_lack("stderr").startswith(("it writes to", "the monitor cannot see"))
    end(process, files)


def test_file_is_not_opened_if_the_descriptor_changes_meanwhile(
    spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process could swap its own descriptor between the checks and the opening."""
    process = start(spawner, tmp_path / "log")
    (tmp_path / "other").touch()
    read_target = output_files._read_target

    def swap(pid: int | str, number: int) -> object:
        target = read_target(pid, number)
        return target._replace(inode="1") if target and pid != "self" else target

    monkeypatch.setattr(output_files, "_read_target", swap)
    assert output_files._open_output(process.pid, 2) is None


def test_few_files_are_held(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit, files of ended processes are closed first; others are opened at need."""
    monkeypatch.setattr(output_files, "max_output_files", lambda: 2)
    processes = [start(spawner, tmp_path / name) for name in "abcd"]
    first, second, third = (OutputFiles(Process(each.pid), table) for each in processes[:3])
    eventually(lambda: {read_text(each) for each in (first, second, third)} == {"a word\n"})
    assert len(table) == 2
    end(processes[2], third)
    assert read_text(third) is None
    end(processes[0], first)
    assert read_text(first) == "a word\n"
    fourth = OutputFiles(Process(processes[3].pid), table)
    assert len(table) == 2
    assert read_text(first) is None
    assert read_text(second) == "a word\n"
    eventually(lambda: read_text(fourth) == "a word\n")
    end(processes[3], fourth)
    assert read_text(fourth) == "a word\n"
    second.close()


def test_lack_of_descriptors_is_no_error(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be opened is not known."""
    process = start(spawner, tmp_path / "log")

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        patch.setattr(os, "dup", refuse)
        files = OutputFiles(Process(process.pid), table)
        assert read_text(files) is None
    end(process, files)


def test_file_of_another_user_is_not_read(
    spawner: Spawner, table: OutputFileTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses what the monitor may not see."""
    process = start(spawner, tmp_path / "log")

    def refuse(path: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", refuse)
        files = OutputFiles(Process(process.pid), table)
        assert read_text(files) is None
        assert files.describe_lack("stderr") == "the monitor cannot see where it writes to"
    end(process, files)
