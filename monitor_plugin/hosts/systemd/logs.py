"""The logs of units: what their processes have written to the journal.

systemd connects the standard output and the standard error of a process to the journal as one
stream. So each of the two streams has the lines of both, in the order in which they were written.
The journal leaves out empty lines, and priorities at the beginning of a line, such as `<3>`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Generator, Sequence
from typing import IO

from ...domain.logs import STREAMS

_logger = logging.getLogger(__name__)

# The entries of the journal: the value of each field by its name.
_Entries = Generator[dict[bytes, bytes], None, None]


def streams_in_journal(standard_output: str, standard_error: str) -> frozenset[str]:
    """Return which streams of a unit go to the journal.

    Args:
        standard_output: the unit's property `StandardOutput`, such as `journal`.
        standard_error: its property `StandardError`; `inherit` is the same as the output.
    """
    if standard_error == "inherit":
        standard_error = standard_output
    kinds = zip(STREAMS, (standard_output, standard_error), strict=True)
    return frozenset(stream for stream, kind in kinds if kind.startswith(("journal", "kmsg")))


class UnitLogs:
    """Reads what the processes of units have written. May be used from any thread.

    Runs journalctl for each call, and ends it when it has written enough.

    Args:
        timeout_seconds: the time limit of a call.
        command: the command of journalctl.
    """

    def __init__(
        self, timeout_seconds: float = 1.0, command: Sequence[str] = ("journalctl",)
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._command = command
        self._last_failure: str | None = None

    def read(self, invocation_id: str, max_bytes: int) -> bytes | None:
        """Read the end of what the processes of an invocation have written.

        Args:
            invocation_id: the 32 hexadecimal digits by which systemd names one start of a unit.
            max_bytes: how many bytes to return at most.

        Returns:
            None: the journal cannot be read, or not in time, which is logged.
        """
        matches = (f"_SYSTEMD_INVOCATION_ID={invocation_id}", "_TRANSPORT=stdout")
        lines: list[bytes] = []
        missing = max_bytes
        try:
            with self._newest_first(matches, ("MESSAGE", "_LINE_BREAK")) as entries:
                for entry in entries:
                    # The journal splits lines that are longer than LineMax= of journald.conf.
                    is_split = entry.get(b"_LINE_BREAK") == b"line-max"
                    lines.append(entry.get(b"MESSAGE", b"") + (b"" if is_split else b"\n"))
                    missing -= len(lines[-1])
                    if missing <= 0:
                        break
        except _JournalError as error:
            self._log_failure(error)
            return None
        self._last_failure = None
        return b"".join(reversed(lines))[-max_bytes:]

    def find_invocation(
        self, unit: str, pid: int | None = None, *, is_user_unit: bool = False
    ) -> str | None:
        """Find the invocation of a unit that has written last, also if systemd has forgotten it.

        Args:
            unit: the name of the unit.
            pid: find the invocation in which this process has written, since the machine's boot.
            is_user_unit: whether a user's manager has the unit.

        Returns:
            None: no process of the unit has written, or the journal cannot be read, or not in time,
            which is logged.
        """
        field = "_SYSTEMD_USER_UNIT" if is_user_unit else "_SYSTEMD_UNIT"
        matches = [f"{field}={unit}", "--lines=1"]
        if pid is not None:
            matches += [f"_PID={pid}", "--boot"]
        try:
            with self._newest_first(matches, ("_SYSTEMD_INVOCATION_ID",)) as entries:
                entry = next(entries, {})
        except _JournalError as error:
            self._log_failure(error)
            return None
        self._last_failure = None
        return entry.get(b"_SYSTEMD_INVOCATION_ID", b"").decode() or None

    def _newest_first(
        self, arguments: Sequence[str], fields: Sequence[str]
    ) -> contextlib.closing[_Entries]:
        """Return the entries of the journal that match, with their fields.

        Raises:
            _JournalError: the journal cannot be read, or not in time.
        """
        options = ("--quiet", "--no-pager", "--reverse", "--output=export")
        shown = f"--output-fields={','.join(fields)}"
        return contextlib.closing(self._run([*self._command, *options, shown, *arguments]))

    def _run(self, command: Sequence[str]) -> _Entries:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise _JournalError(str(error)) from None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(self._timeout_seconds, end)
        with process:
            assert process.stdout
            assert process.stderr
            try:
                timer.start()
                yield from _parse_export(process.stdout)
                errors = process.stderr.read().decode(errors="backslashreplace").strip()
                exit_code = process.wait()
            finally:
                timer.cancel()
                process.kill()
        if is_late.is_set():
            raise _JournalError(f"journalctl takes longer than {self._timeout_seconds:g} s")
        if exit_code:
            raise _JournalError(errors or f"journalctl exited with code {exit_code}")

    def _log_failure(self, error: _JournalError) -> None:
        if str(error) != self._last_failure:
            _logger.warning(
                "the journal cannot be read: %s; the monitor's user should be root or in the group "
                "systemd-journal",
                error,
            )
        self._last_failure = str(error)


class _JournalError(Exception):
    """The journal cannot be read."""


def _parse_export(file: IO[bytes]) -> _Entries:
    """Parse systemd's Journal Export Format: the fields of each entry by their names.

    A field is a line NAME=VALUE. If its value is no text, it is a line NAME, the size of the value
    as a 64-bit number, the value, and the end of the line. An empty line ends an entry.
    """
    entry: dict[bytes, bytes] = {}
    while line := file.readline():
        name, separator, value = line[:-1].partition(b"=")
        if separator:
            entry[name] = value
        elif name:
            entry[name] = file.read(int.from_bytes(file.read(8), "little"))
            file.read(1)
        else:
            yield entry
            entry = {}
