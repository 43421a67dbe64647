"""The records that the monitor hands out: frozen, so that they can be shared between threads.

Bytes are bytes, times are seconds since the epoch, percentages are said of what.
"""

from __future__ import annotations

import enum
from datetime import datetime, timezone
from typing import Annotated

import msgspec

# Unsigned 64-bit integers, as the protocol's; the bounds are for descriptions, and not checked.
Bytes = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 2**64 - 1})]


class State(enum.IntEnum):
    """What a backend says of itself, by the numbers of LocalAI's protocol."""

    ERROR = -1
    UNINITIALIZED = 0
    BUSY = 1
    READY = 2


class Backend(msgspec.Struct, frozen=True):
    """One process that serves one model.

    Attributes:
        model: the model's name, free text.
        pid: the process that the host registered.
        address: where it serves gRPC, as the host gave it.
        created_at: the process's creation time in seconds since the epoch, as psutil gives it;
            with the PID it is the process's identity.
    """

    model: str
    pid: int
    address: str
    created_at: float


class Memory(msgspec.Struct, frozen=True):
    """Bytes held by a backend, in total and by component; the parts need not add up to it."""

    total: Bytes
    breakdown: dict[str, Bytes] = msgspec.field(default_factory=dict)


class Status(msgspec.Struct, frozen=True):
    """What a backend says of itself.

    Attributes:
        state: a number of `State`, or one that the protocol does not know yet.
        memory: None where the backend reported none.
    """

    state: int
    memory: Memory | None = None


class Sample(msgspec.Struct, frozen=True):
    """What the operating system says of the registered process (psutil); None: may not be read.

    Attributes:
        rss, vms: bytes.
        memory_percent: rss in percent of physical memory.
        cpu_percent: percent of one core, over the last one to five seconds.
    """

    rss: int | None
    vms: int | None
    memory_percent: float | None
    cpu_percent: float | None


class BackendExit(msgspec.Struct, frozen=True):
    """How a backend ended.

    Attributes:
        cause: `shutdown` (the monitor was asked to stop it), `exited` (by itself, with a code),
            `killed` (by a signal), `oom` (by the kernel, for want of memory) or `unknown`.
        exit_code: its exit code, where it is known and no signal ended it.
        signal: the number of the signal that ended it.
        oom: True where the kernel killed it for want of memory, False where it surely did not,
            None where that is not known.
        ended_at: when the end was noticed, in seconds since the epoch.
    """

    cause: str
    exit_code: int | None
    signal: int | None
    oom: bool | None
    ended_at: float


class Reading(msgspec.Struct, frozen=True):
    """What a client gets: a status, or, where that failed, a sample.

    Of several replicas of a model together it has the worst state and the sums of their figures; of
    sources and codes, all that there were, separated by commas.

    Attributes:
        backend: whose reading it is; of several, the newest.
        status: None where asking the backend failed.
        sample: None where there is a status.
        source: `grpc`, `hook` or `psutil`.
        rpc_error: the gRPC code's name on a fallback, else None.
        taken_at: seconds since the epoch.
        memory_source: where `status.memory.total` comes from: `backend` (its own word), `pss` or
            `rss` (sums over its process tree); None where there is no such figure.
        replicas: how many backends the model has, also where the reading is of one of them.
    """

    backend: Backend
    status: Status | None
    sample: Sample | None
    source: str
    rpc_error: str | None
    taken_at: float
    memory_source: str | None = None
    replicas: int = 1


class HookFigures(msgspec.Struct, frozen=True):
    """How one plugin's implementation of a hook fared.

    Attributes:
        name: the hook's.
        calls: how often it was called.
        errors: how often it raised, or gave what the hook does not take.
        overruns: how often it was not back in its time.
        seconds_total, seconds_max: how long its calls took, all and the longest; of one that is
            not back yet until it overran.
    """

    name: str
    calls: int
    errors: int
    overruns: int
    seconds_total: float
    seconds_max: float


class LoadedPlugin(msgspec.Struct, frozen=True):
    """A plugin whose hooks the monitor calls.

    Attributes:
        name: under which it is registered.
        source: a hook file's path, a distribution's name and version, `plugins=`, or the plugin
            manager in which a host registered it.
        hooks: those that it implements.
    """

    name: str
    source: str
    hooks: tuple[HookFigures, ...]


def moment(seconds: float) -> datetime:
    """Turn seconds since the epoch into what is encoded as RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def state_name(state: int | None) -> str:
    """Name a state: `unknown` where there is none, or the protocol does not know the number."""
    names = {int(each): each.name.lower() for each in State}
    return "unknown" if state is None else names.get(state, "unknown")
