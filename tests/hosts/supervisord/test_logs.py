"""The logs of programs: which part of them an ended process has written."""

from __future__ import annotations

from pathlib import Path

from monitor_plugin import LogTail
from monitor_plugin.hosts.supervisord.client import SupervisordClient
from monitor_plugin.hosts.supervisord.logs import ProgramLogs
from monitor_plugin.hosts.supervisord.programs import LogFile, ModelProgram


def program(path: Path, pid: int) -> ModelProgram:
    logs = {"stderr": LogFile("stderr", str(path))}
    return ModelProgram("m", "g:p", "g:p", pid, 20, None, 0, logs)


def test_ended_process_has_no_words_of_earlier_ones(tmp_path: Path) -> None:
    """Also not of those from before the monitor, or if it wrote nothing."""
    path, logs = tmp_path / "log", ProgramLogs(SupervisordClient("http://127.0.0.1:1"))
    path.write_bytes(b"from before\n")
    log = path.open("ab", buffering=0)

    def read(pid: int | None) -> object:
        return logs.read(program(path, 0), pid, "stderr", 99)

    logs.follow([program(path, 0)])
    logs.follow([program(path, 7)])
    log.write(b"seven\n")
    assert read(7) == LogTail(b"from before\nseven\n", 18)  # it may write more
    logs.follow([program(path, 0)])
    logs.follow([program(path, 8)])
    logs.follow([program(path, 0)])
    assert read(7) == LogTail(b"seven\n", 18)
    assert read(8) == LogTail(b"", 18)
    logs.follow([program(path, 9)])
    log.write(b"nine\n")
    logs.follow([program(path, 10)])  # whose begin is not known, as nobody saw the end of 9
    log.write(b"ten\n")
    logs.follow([program(path, 0)])
    assert read(9) == LogTail(b"nine\n", 23)
    assert read(10) == LogTail(b"nine\nten\n", 27)
    assert read(None) == LogTail(b"from before\nseven\nnine\nten\n", 27)
    log.close()


def test_log_of_a_process_that_ran_before_the_monitor_is_whole(tmp_path: Path) -> None:
    """Where its part begins is not known."""
    path, logs = tmp_path / "log", ProgramLogs(SupervisordClient("http://127.0.0.1:1"))
    path.write_bytes(b"from before\nseven\n")
    logs.follow([program(path, 7)])
    logs.follow([program(path, 0)])
    whole = LogTail(b"from before\nseven\n", 18)
    assert logs.read(program(path, 0), 7, "stderr", 99) == whole
