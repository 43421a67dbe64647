"""What backends write to their standard output and standard error."""

from __future__ import annotations

import msgspec

#: The streams of a process: the values of `stream` of `GET /backend/log`.
STREAMS = ("stdout", "stderr")


class LogTail(msgspec.Struct, frozen=True):
    """The last bytes of a stream, and where they end in it.

    Attributes:
        data: the bytes.
        end: how many bytes the stream has had up to the end of `data`, as the size of a log file
            that is never rotated. The bytes after it follow `data`.
    """

    data: bytes
    end: int
