"""The registrations that the monitor has refused, for the list of backends."""

from __future__ import annotations

import threading
from typing import NamedTuple

import psutil

from ..domain.address import hide_credentials
from ..processes.process_table import read_row

MAX_REFUSALS = 100
# Longer than a model's name, and than most reasons.
_MAX_CHARACTERS = 500
_MAX_PID = 2**31 - 1


class Refusal(NamedTuple):
    """A registration that was refused.

    Attributes:
        model: the model as the host gave it; of a value that is no text, its `repr`.
        pid: the PID.
        address: the address as the host gave it, without a password; of a value that is no text,
            its `repr`.
        reason: why it was refused.
        started: the start time of the process in clock ticks since boot.
    """

    model: str
    pid: int
    address: str
    reason: str
    started: float


class Refusals:
    """The last refusal of each process and model, oldest process first, at most `MAX_REFUSALS`.

    A refusal is kept while its process runs, until the process is registered. Safe to call from any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: dict[tuple[int, str], Refusal] = {}

    def add(self, model: object, pid: object, address: object, reason: object) -> None:
        """Add a refusal, if its PID is that of a process that runs.

        Args:
            model: the model as the host gave it, of any type.
            pid: the PID as the host gave it, of any type.
            address: the address as the host gave it, of any type.
            reason: why the registration was refused.
        """
        if not isinstance(pid, int) or isinstance(pid, bool):
            return
        plain_pid = int.__int__(pid)  # the JSON encoder accepts no subclasses of int
        try:
            started = _start_time(plain_pid)
        except OSError:  # no file descriptor is free
            return
        if started is None:
            return
        shown = hide_credentials(_text(address))
        added = Refusal(_text(model), plain_pid, shown, _text(str(reason)), started)
        with self._lock:
            self._refusals[plain_pid, added.model] = added
            is_full = len(self._refusals) > MAX_REFUSALS
        if is_full:
            running = self.running()
            self._remove(running[: max(0, len(running) - MAX_REFUSALS)])

    def running(self) -> list[Refusal]:
        """List the refusals whose processes still run; drop the others."""
        with self._lock:
            refusals = list(self._refusals.values())
        ended = [each for each in refusals if _has_ended(each)]
        self._remove(ended)
        return [each for each in refusals if each not in ended]

    def find(self, model: str, address: str) -> list[Refusal]:
        """List the refusals of a model and an address, also of processes that have ended."""
        with self._lock:
            return [
                each
                for each in self._refusals.values()
                if (each.model, each.address) == (model, address)
            ]

    def remove(self, pid: int) -> None:
        """Drop the refusals of a process."""
        with self._lock:
            for key in [each for each in self._refusals if each[0] == pid]:
                del self._refusals[key]

    def _remove(self, refusals: list[Refusal]) -> None:
        with self._lock:
            for each in refusals:
                if self._refusals.get((each.pid, each.model)) == each:
                    del self._refusals[each.pid, each.model]


def _has_ended(refusal: Refusal) -> bool:
    try:
        return _start_time(refusal.pid) != refusal.started
    except OSError:
        return False


def _start_time(pid: int) -> float | None:
    """Return the start time of a process in clock ticks since boot; None if none runs.

    Raises:
        OSError: no file descriptor is free.
    """
    if not 0 < pid <= _MAX_PID or not psutil.pid_exists(pid):  # the ID of a thread is no PID
        return None
    row = read_row(pid)
    return None if row is None or row.is_zombie else row.started


def _text(value: object) -> str:
    """Return a text that can be encoded as JSON, at most `_MAX_CHARACTERS` long."""
    try:
        text = str.__str__(value) if isinstance(value, str) else repr(value)
        try:
            text.encode()
        except UnicodeEncodeError:  # it holds a lone surrogate
            text = repr(text)
    except Exception:  # a `__repr__` of the host may raise anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
