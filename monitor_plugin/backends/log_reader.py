"""Reads what backends write to their standard output and error.

A hook of the host comes first, then the file that the process writes to, if it writes to a file.
The output may hold what users sent to a model: only admins may see it, and it is never logged.
"""

from __future__ import annotations

import codecs
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ..domain.errors import LogUnavailable, ModelNotLoaded, MonitorError, PidNotHeld
from ..domain.logs import MAX_LOG_BYTES, LogTail, last_lines
from ..domain.postmortems import MAX_OUTPUT_BYTES, MAX_OUTPUT_LINES
from ..plugins.hooks import Hooks
from ..processes.output_files import OutputFiles
from .registry import Registry

# Enough for `MAX_OUTPUT_BYTES` of text after colours are removed.
_OUTPUT_BYTES = 4 * MAX_OUTPUT_BYTES
# The first line of a last output that may not be the backend's own.
_SHARED = "[the monitor's own process writes to this file, too]\n"
_MAX_POSITIONS = 64
_OVERLAP_BYTES = 512  # few, so that the search takes milliseconds in whatever a backend writes
_MIN_OVERLAP_BYTES = 16
_CONTINUATION = range(0x80, 0xC0)  # the bytes of a UTF-8 character after its first


class Log(NamedTuple):
    """A part of the log of a stream: see `LogAnswer`."""

    pid: int | None
    source: str
    text: str
    start: int
    next: int
    gap: bool


class _Process(NamedTuple):
    """The process of a model, as the registry knows it.

    Attributes:
        pid: its PID; None if it was not registered.
        output: the files that it writes to; None if they are not known.
        has_ended: whether it has ended.
        is_last: whether it is the last process of its model that was registered. Its host may have
            started others since, which ended at once.
    """

    pid: int | None = None
    output: OutputFiles | None = None
    has_ended: bool = False
    is_last: bool = False

    @property
    def host_pid(self) -> int | None:
        """The PID to ask hooks for; None: the last process of the model that its host knows."""
        return None if self.is_last else self.pid


class LogReader:
    """Reads the logs of models. Safe to call from any thread.

    Args:
        registry: the registered backends, and the last exits.
        hooks: read the logs that hosts keep.
        is_known: whether a host knows a model that was not registered.
    """

    def __init__(self, registry: Registry, hooks: Hooks, is_known: Callable[[str], bool]) -> None:
        self._registry = registry
        self._hooks = hooks
        self._is_known = is_known
        self._positions = _Positions()

    def read(
        self, model: str, pid: int | None, stream: str, max_bytes: int, after: int | None = None
    ) -> Log:
        """Read the end of a stream, or what follows an offset in it.

        Args:
            model: the name of the model.
            pid: the PID of one of its backends, which may have ended; None: the newest one, or the
                last process of a model of which no backend was registered.
            stream: `stdout` or `stderr`.
            max_bytes: how many bytes to read at most.
            after: the offset; None reads the end.

        Raises:
            PidNotHeld: no backend of the model has this PID.
            ModelNotLoaded: the model is not known.
            LogUnavailable: there is no hook and no file to read the log from.
        """
        process = self._find(model, pid)
        source, tail = self._read_end(model, process, stream, max_bytes, after)
        if tail is None:
            if process.pid is None and not self._is_known(model):
                raise ModelNotLoaded(model)
            raise LogUnavailable(model, process.pid, stream, _describe_lack(process, stream))
        return _make_log(process, source, tail, after)

    def last_output(self, model: str, pid: int | None = None, after_end_id: int = 0) -> str | None:
        """Read the last lines of a model's process; None if it wrote none, or if none are known.

        See `PostMortem.last_output`.

        Args:
            model: the name of the model.
            pid: as for `read`.
            after_end_id: only read a process that runs, or whose end has a greater number.
        """
        try:
            process = self._find(model, pid, after_end_id)
        except MonitorError:
            return None
        return self._last_lines(model, process)

    def last_output_of_ended(self, model: str, pid: int, output: OutputFiles | None) -> str | None:
        """Read the last lines of a backend that has ended, also if its exit is not stored."""
        return self._last_lines(model, _Process(pid, output, has_ended=True))

    def _last_lines(self, model: str, process: _Process) -> str | None:
        for stream in ("stderr", "stdout"):
            source, tail = self._read_end(model, process, stream, _OUTPUT_BYTES, None)
            is_shared = source == "file" and process.output and process.output.is_own(stream)
            heading = _SHARED if is_shared else ""
            lines = tail and last_lines(
                tail.data, MAX_OUTPUT_LINES, MAX_OUTPUT_BYTES - len(heading)
            )
            if lines:
                return heading + lines
        return None

    def _find(self, model: str, pid: int | None, after_end_id: int = 0) -> _Process:
        processes = [
            _Process(each.backend.pid, each.output)
            for each in reversed(self._registry.records(model))
        ]
        processes += [
            _Process(each.backend.pid, each.output, has_ended=True)
            for each in reversed(self._registry.last_exits())
            if each.backend.model == model and each.id > after_end_id
        ]
        for process in processes:
            if pid is None:
                return process._replace(is_last=process.has_ended)
            if pid == process.pid:
                return process
        if pid is None:
            return _Process()
        if processes:
            raise PidNotHeld(model, pid, [each.pid for each in processes if each.pid])
        raise ModelNotLoaded(model)

    def _read_end(
        self, model: str, process: _Process, stream: str, max_bytes: int, after: int | None
    ) -> tuple[str, LogTail | None]:
        """Return the source and the end of a stream; the end is None if it cannot be read."""
        pid = process.host_pid
        found = self._hooks.read_log(model, pid, stream, max_bytes)
        if isinstance(found, bytes):
            found = self._positions.locate((model, pid, stream), found, max_bytes)
        if found is not None:
            return "host", found
        if process.output is None:
            return "file", None
        return "file", process.output.read(stream, max_bytes, after)


class _Position(NamedTuple):
    """Where the bytes that a hook returned are in their stream: from `begin` to `end`."""

    begin: int
    end: int
    last_bytes: bytes


class _Positions:
    """Finds where in its stream the bytes are that a hook returned without their position.

    Stores the last bytes of each answer of a hook, and searches for them in its next answer. In a
    log that only repeats itself, new repetitions cannot be told from old ones. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[object, _Position] = OrderedDict()  # least recently used first

    def locate(self, key: object, data: bytes, max_bytes: int) -> LogTail:
        """Return the bytes with their end. Bytes that do not overlap the last ones follow a gap.

        Args:
            key: identifies the stream.
            data: the end of the stream.
            max_bytes: how many bytes the hook was asked for: fewer are the whole log.
        """
        with self._lock:
            last = self._known.get(key)
        if last is None:
            # There may be bytes before these, which a later call may return.
            begin = 0 if len(data) < max_bytes else MAX_LOG_BYTES
        else:
            overlap = _find_overlap(last, data)
            begin = last.end + 1 if overlap is None else max(0, last.end - overlap)
        end = begin + len(data)
        with self._lock:
            self._known[key] = _Position(begin, end, data[-_OVERLAP_BYTES:])
            self._known.move_to_end(key)
            if len(self._known) > _MAX_POSITIONS:
                self._known.popitem(last=False)
        return LogTail(data, end)


def _find_overlap(last: _Position, data: bytes) -> int | None:
    """Return how many of the bytes were returned before; None if that is not known."""
    length = last.end - last.begin
    if data[:length].endswith(last.last_bytes) and len(data) >= length:
        return length  # the log has only grown
    found = data.rfind(last.last_bytes)
    if found >= 0:
        return found + len(last.last_bytes)
    for length in range(min(len(last.last_bytes), len(data)), _MIN_OVERLAP_BYTES - 1, -1):
        if last.last_bytes.endswith(data[:length]):
            return length
    return None


def _make_log(process: _Process, source: str, tail: LogTail, after: int | None) -> Log:
    data = tail.data[max(0, len(tail.data) - tail.end) :]
    start = tail.end - len(data)
    gap = after is not None and not start <= after <= tail.end
    if after is not None and not gap:
        data, start = data[after - start :], after
    elif start > 0:  # a character may be cut
        rest = data[:3].lstrip(bytes(_CONTINUATION))
        cut = len(data[:3]) - len(rest)
        data, start = data[cut:], start + cut
    pid = process.pid if source == "file" else process.host_pid
    has_ended = process.has_ended and pid is not None  # the last process of a host may run
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    # The rest of a character that is not complete yet follows with the next bytes.
    text = decoder.decode(data, has_ended)
    pending, _ = decoder.getstate()
    return Log(pid, source, text, start, tail.end - len(pending), gap)


def _describe_lack(process: _Process, stream: str) -> str:
    if process.output is None:
        return "it was not registered, so that only its host can know the log"
    return process.output.describe_lack(stream)
