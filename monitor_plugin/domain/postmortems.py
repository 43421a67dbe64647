"""Why a backend ended: all that is known of its end, and of the time before it."""

from __future__ import annotations

import msgspec

from .models import BackendExit, LeftBehindProcess, Observation
from .units import HostExit

# The maximum number of lines, and of bytes of UTF-8, of `PostMortem.last_output`.
MAX_OUTPUT_LINES = 20
MAX_OUTPUT_BYTES = 4096


class PostMortem(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of the end of a backend. None means unknown.

    Attributes:
        id: the number of the end, as in `GET /ended/ID`.
        exit: the exit: its cause, its code or signal, and the peak of its memory.
        uptime_seconds: the time from the creation of its process to its end.
        ready_seconds: the time from the creation of its process to the first READY that was seen;
            None if it never was READY, or was READY when the monitor first saw it.
        ends_last_hour: how many backends of the model have ended within the hour before, with this
            one.
        left_behind: its members that ran one second after the exit, or after a shutdown; empty if
            none did.
        last_observation: what the last sweep before the end found; None if there was none.
        last_output: its last output: at most 20 lines and 4096 bytes of UTF-8, with control
            characters escaped; the standard error, or the standard output if that is empty. It may
            hold what users sent to the model. If the backend writes to the file that the monitor's
            own process writes to, a first line in brackets says so.
        host_exit: what the host says of the end; None if it says nothing.
    """

    id: int
    exit: BackendExit
    uptime_seconds: float
    ready_seconds: float | None = None
    ends_last_hour: int = 1
    left_behind: tuple[LeftBehindProcess, ...] | None = None
    last_observation: Observation | None = None
    last_output: str | None = None
    host_exit: HostExit | None = None
