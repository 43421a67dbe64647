"""The logs that supervisord keeps of its programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ...domain.logs import LogTail
from ..log_files import LogFiles
from ..log_spans import LogSpans
from .client import SupervisordClient, SupervisordError
from .programs import ModelProgram

# A character of UTF-8 has up to four bytes.
_MAX_CHARACTER_BYTES = 4


class ProgramLogs:
    """Reads the logs of programs.

    A log has the output of all processes of its program, in their order. Where it ends is recorded
    when a process has ended, because the last output of the process is often requested when the
    next process already writes.

    `follow` must be called from one thread only, `read` may be called from any.

    Args:
        supervisord: calls the supervisord that keeps the logs.
    """

    def __init__(self, supervisord: SupervisordClient) -> None:
        self._supervisord = supervisord
        self._files = LogFiles()
        self._pids: dict[str, int] = {}  # by the full names of the programs
        self._spans = LogSpans()  # of logs by the name of the program and the channel

    def follow(self, programs: Iterable[ModelProgram]) -> None:
        """Record where the logs of processes end that have ended since the last call."""
        before, self._pids = self._pids, {each.name: each.pid for each in programs}
        for program in programs:
            pid = before.get(program.name, 0)
            for channel, path in program.logs.values():
                log = (program.name, channel)
                is_new = program.pid not in (0, pid)
                if is_new:  # before the end of `pid`, which may be seen late
                    self._spans.begin(log, program.pid)
                has_ended = pid not in (0, program.pid)
                if has_ended or not (is_new or program.pid or self._spans.has_rested(log)):
                    self._record_end(log, path, pid)

    def _record_end(self, log: tuple[str, str], path: str, pid: int) -> None:
        """Record where a log ends after the end of a process; 0: of one that was not seen."""
        with contextlib.suppress(OSError):
            if tail := self._read_file(path, 0):
                if pid:
                    self._spans.end(log, pid, tail.end)
                else:
                    self._spans.rest(log, tail.end)

    def read(
        self, program: ModelProgram, pid: int | None, stream: str, max_bytes: int
    ) -> LogTail | bytes | None:
        """Read the end of a program's log, or of the part of it that an ended process has written.

        Reads the file if the monitor may, else asks supervisord, which cannot send bytes that are
        no UTF-8, or control characters.

        Args:
            program: the program.
            pid: the program's process, which may have ended; None reads the end of the log.
            stream: `stdout` or `stderr`.
            max_bytes: how many bytes to read at most.

        Returns:
            None: supervisord does not write this stream to a file, or it cannot be read. Bytes
            without their position if supervisord was asked: it counts from the last rotation.
        """
        if stream not in program.logs:
            return None
        channel, path = program.logs[stream]
        log = (program.name, channel)
        try:
            tail = self._read_file(path, max_bytes, self._spans.end_of(log, pid))
            return tail and self._spans.cut(log, pid, tail)
        except OSError:  # such as a file of another user
            return self._ask(program.name, channel, max_bytes)

    def _read_file(self, path: str, max_bytes: int, end: int | None = None) -> LogTail | None:
        if path.startswith(("/dev/", "/proc/")):  # /dev/stdout would be that of the monitor itself
            return None
        if not path.startswith("/"):
            raise FileNotFoundError(f"{path} is relative to supervisord's folder")
        return self._files.read(path, max_bytes, end)

    def _ask(self, name: str, channel: str, max_bytes: int) -> bytes | None:
        """Ask supervisord for the end of a log; return None if it fails, or has no log."""
        method = f"tailProcess{channel.capitalize()}Log"
        # supervisord fails if the first byte is in the middle of a character.
        for size in range(max_bytes, max(0, max_bytes - _MAX_CHARACTER_BYTES), -1):
            with contextlib.suppress(SupervisordError):
                text, end, _ = self._supervisord.call(method, name, 0, size)
                return text.encode() if end else None
        return None
