"""The logs of backends: their standard output and standard error."""

from __future__ import annotations

import re

import msgspec

#: The streams of a process: the values of `stream` of `GET /backend/log`.
STREAMS = ("stdout", "stderr")

#: The maximum number of bytes of one answer of `GET /backend/log`.
MAX_LOG_BYTES = 1 << 20


class LogTail(msgspec.Struct, frozen=True):
    """The last bytes of a stream, and where they end in it.

    Attributes:
        data: the bytes.
        end: how many bytes the stream has had up to the end of `data`, as the size of a log file
            that is never rotated. The bytes after it follow `data`.
    """

    data: bytes
    end: int


# Sequences of ECMA-48 that a terminal obeys: colours, movements of the cursor, titles.
_TERMINAL_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])"
)


def last_lines(data: bytes, max_lines: int, max_bytes: int) -> str | None:
    """Return the last lines of a log as text that is safe to show; None if it has only spaces.

    Colours and other sequences for a terminal are left out. Bytes that are no UTF-8, and characters
    that cannot be printed, are escaped, except the ends of lines.

    Args:
        data: the end of the log.
        max_lines: how many lines to return at most.
        max_bytes: how many bytes of UTF-8 the text may have; the beginning is cut.
    """
    text = data.decode(errors="backslashreplace").replace("\r\n", "\n")
    lines = _TERMINAL_SEQUENCE.sub("", text).rstrip(" \t\r\n").split("\n")[-max_lines:]
    shown = "\n".join(map(_escape, lines)).encode()[-max_bytes:].decode(errors="ignore")
    return shown if shown.strip() else None


def _escape(line: str) -> str:
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
    )
