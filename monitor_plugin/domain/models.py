"""The records that the monitor gives to clients, hosts and hooks.

They are frozen, so that threads can share them. Sizes are in bytes, times in seconds since the
epoch; each percentage names its base.
"""

from __future__ import annotations

import enum
from datetime import datetime, timezone
from typing import Annotated

import msgspec

# Unsigned 64-bit integers, as in the protocol. The bounds appear in the description of the API
# only; they are not checked.
Bytes = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 2**64 - 1})]


class State(enum.IntEnum):
    """The state that a backend reports, with the numbers of LocalAI's protocol."""

    ERROR = -1
    UNINITIALIZED = 0
    BUSY = 1
    READY = 2


_STATE_NAMES = {int(each): each.name.lower() for each in State}
# The name of the state of a backend that has not answered yet.
STARTING = "starting"


def state_name(state: int | None) -> str:
    """Return a state's name in lower case; `unknown` for None and for numbers not in `State`."""
    return "unknown" if state is None else _STATE_NAMES.get(state, "unknown")


def utc_datetime(seconds: float) -> datetime:
    """Convert seconds since the epoch to a UTC time, which msgspec encodes as RFC 3339."""
    return datetime.fromtimestamp(seconds, timezone.utc)


class Backend(msgspec.Struct, frozen=True):
    """One process that serves one model.

    Attributes:
        model: the model's name, free text.
        pid: the process that the host registered.
        address: where it serves gRPC, as the host gave it.
        created_at: the process's creation time in seconds since the epoch, as psutil gives it. PID
            and creation time together identify the process.
    """

    model: str
    pid: int
    address: str
    created_at: float


class ProcessName(msgspec.Struct, frozen=True):
    """A process as people know it.

    Attributes:
        pid: None if it is not known.
        name: its name; None if it cannot be read.
    """

    pid: int | None
    name: str | None


def describe_process(process: ProcessName) -> str:
    """Return the text for a process: `4711 (python3)`, `4711` or `unknown`."""
    pid = "unknown" if process.pid is None else str(process.pid)
    return pid if process.name is None else f"{pid} ({process.name})"


class LeftBehindProcess(msgspec.Struct, frozen=True):
    """A member of a backend that still runs after the backend has ended.

    Attributes:
        pid: its PID.
        name: its name; None if it cannot be read.
        bytes: its resident memory (RSS, which includes shared pages); None if it is about to end.
    """

    pid: int
    name: str | None
    bytes: Bytes | None


class Memory(msgspec.Struct, frozen=True):
    """The memory of a backend in bytes, in total and by component.

    The components need not add up to the total.
    """

    total: Bytes
    breakdown: dict[str, Bytes] = msgspec.field(default_factory=dict)


class Status(msgspec.Struct, frozen=True):
    """A backend's report about itself.

    Attributes:
        state: a number of `State`, or one that this version of the protocol does not define.
        memory: None if the backend did not report it.
        requests_running: how many requests it is working on; None if it does not report that, as
            for the next three.
        requests_waiting: how many requests wait for it.
        tokens_per_second: how many tokens it generates per second, for all requests together.
        kv_cache_percent: the used part of its KV cache, in percent of the cache.
    """

    state: int
    memory: Memory | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    tokens_per_second: float | None = None
    kv_cache_percent: float | None = None

    @property
    def has_requests(self) -> bool:
        """Whether it is BUSY, or requests are running or waiting."""
        return bool(self.state == State.BUSY or self.requests_running or self.requests_waiting)


class Sample(msgspec.Struct, frozen=True):
    """Figures of psutil for the registered process. None: the monitor may not read that value.

    Attributes:
        rss: resident memory in bytes.
        vms: virtual memory in bytes.
        memory_percent: rss in percent of the memory that the registered process may use: the lowest
            limit of its control groups, or else the physical memory.
        cpu_percent: percent of one core, over the last one to five seconds.
    """

    rss: int | None
    vms: int | None
    memory_percent: float | None
    cpu_percent: float | None


class BackendExit(msgspec.Struct, frozen=True):
    """How a backend ended.

    Attributes:
        cause: `shutdown` (the monitor was asked to stop it), `exited` (it ended by itself, with an
            exit code), `killed` (by a signal), `oom` (the kernel killed it because memory ran out)
            or `unknown`.
        exit_code: its exit code; None if that is not known, or a signal ended it.
        signal: the number of the signal that ended it.
        oom: True if the kernel killed it because memory ran out, False if that is ruled out, None
            if it is not known.
        ended_at: when the monitor noticed the exit, in seconds since the epoch.
        oom_certain: False if other processes are in the backend's control group, of which the
            kernel may have killed another one; else True. None if the cause is not `oom`.
        peak_rss: the `peak_rss` of its process tree at the last reading of the tree, in bytes.
    """

    cause: str
    exit_code: int | None
    signal: int | None
    oom: bool | None
    ended_at: float
    oom_certain: bool | None = None
    peak_rss: Bytes | None = None


class MemberEnd(msgspec.Struct, frozen=True):
    """How a member of a backend ended while the registered process runs.

    Attributes:
        pid: its PID.
        name: the name of its program or first thread, at most 15 bytes, as the process may set it.
        exit_code: its exit code; None if that is not known, or a signal ended it.
        signal: the number of the signal that ended it; None if that is not known, or none did.
        is_zombie: whether its parent has not waited for it yet.
        pauses: whether the backend's next ends by the same signal, or with the same exit code, are
            not reported until there was none for ten minutes.
    """

    pid: int
    name: str
    exit_code: int | None
    signal: int | None
    is_zombie: bool
    pauses: bool = False


class Reading(msgspec.Struct, frozen=True):
    """The answer to a client: a status or, if the status failed, a sample.

    The reading of a model with several replicas has their worst state and the sums of their
    figures. Where sources or codes differ, it names all of them, separated by commas.

    Attributes:
        backend: the backend that was read; of several replicas, the newest.
        status: None if the call to the backend failed.
        sample: None if there is a status.
        source: `grpc`, `http`, `hook` or `psutil`.
        rpc_error: the name of the gRPC code with which `Status` failed, else None. If the backend
            is asked by HTTP, the code that gRPC has for such a failure.
        taken_at: seconds since the epoch.
        memory_source: where `status.memory.total` comes from: `backend` (its own report), `pss` or
            `rss` (sums over its process tree); None if there is no such figure.
        replicas: how many backends the model has, also where only one of them was read.
        address_owner: the process that serves the backend's address although it does not belong to
            the backend, so that its answer is not believed; of several replicas the first one. None
            if there is none, or if that cannot be seen.
        memory_age_seconds: the age of PSS at the time of the reading; for several replicas, the
            highest age. None if PSS is no part of `status.memory.total`.
        protocol: the name of the protocol that gave the status, such as `llama.cpp`; None without a
            status, and if a hook gave it.
        status_error: why there is no status, for people; None if only the code is known.
    """

    backend: Backend
    status: Status | None
    sample: Sample | None
    source: str
    rpc_error: str | None
    taken_at: float
    memory_source: str | None = None
    replicas: int = 1
    address_owner: ProcessName | None = None
    memory_age_seconds: float | None = None
    protocol: str | None = None
    status_error: str | None = None


class ProcessUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of /proc for one process, or the sums for all processes of a tree.

    Attributes:
        rss: resident memory in bytes; in the sum of a tree, shared pages count once per process.
        vms: virtual memory in bytes.
        memory_percent: rss in percent of the memory that the registered process may use: the lowest
            limit of its control groups, or else the physical memory.
        cpu_percent: percent of one core, over the last one to ten seconds.
        cpu_seconds: CPU time used so far by the processes that run now; in the sum of a tree, also
            that of processes that have ended and that a process of the tree has waited for.
        threads: how many.
        open_files: how many file descriptors are open.
        peak_rss: the most resident memory that a process ever had, in bytes (`VmHWM` of
            /proc/PID/status, or a higher rss that was seen since); in the sum of a tree, the sum of
            the peaks of its processes, although these may be of different times.
    """

    rss: int | None = None
    vms: int | None = None
    memory_percent: float | None = None
    cpu_percent: float | None = None
    cpu_seconds: float | None = None
    threads: int | None = None
    open_files: int | None = None
    peak_rss: int | None = None


class TreeUsage(ProcessUsage, frozen=True, kw_only=True):
    """The usage of a backend's process tree.

    Attributes:
        processes: how many run.
        zombies: how many have ended, and their parents have not waited for them yet.
        pss: bytes, shared pages counted once (/proc/PID/smaps_rollup): the sum of `anonymous`,
            `file` and `shared`. None until the tree was read, and if a process may not be read.
        anonymous: the part of pss that belongs to no file.
        file: the part of pss that is mapped from files, which the kernel can drop.
        shared: the part of pss in shared memory and tmpfs.
        swap: bytes in swap, shared pages counted once.
        memory_age_seconds: how long ago pss and the four figures after it were read.
        vram: bytes on GPUs: the component `vram` if a hook reports it, else the sum of the
            components `vram:<device>`. None if there is no such component, or if one is not known.
        gtt: bytes of system memory that the tree uses through GPUs, which are not part of pss: the
            component `gtt` if a hook reports it, else the sum of the components `gtt:<device>`.
            None as for vram.
    """

    processes: int
    zombies: int = 0
    pss: int | None = None
    anonymous: int | None = None
    file: int | None = None
    shared: int | None = None
    swap: int | None = None
    memory_age_seconds: float | None = None
    vram: int | None = None
    gtt: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much memory and CPU a process may use: the lowest limits of its control groups.

    The groups above its own count as well, up to the root.

    Attributes:
        memory_limit: bytes (version 2 of control groups: `memory.max` and `memory.high`; version 1:
            `memory.limit_in_bytes`); None if no limit is below the physical memory.
        memory_available: bytes that the process can still use before a limit or the physical memory
            is reached. File pages that the kernel can drop count as available. None if unknown.
        cpu_limit: CPU cores: the quota (`cpu.max`, `cpu.cfs_quota_us`) or the number of cores that
            the process may run on (affinity, cpuset), whichever is lower.
        memory_pressure, cpu_pressure: the time in which some process waited for memory, or for a
            core, in percent of the last 10 s (PSI). `machine` has the pressure on the whole
            machine, a backend the pressure on its own control group of version 2. None where the
            kernel does not report it, and for a backend in the root group.
    """

    memory_limit: Bytes | None = None
    memory_available: Bytes | None = None
    cpu_limit: float | None = None
    memory_pressure: float | None = None
    cpu_pressure: float | None = None


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a stopped backend has given back. All its members have ended.

    Attributes:
        memory: bytes that the members held before the stop (PSS, or RSS where PSS is not known).
        gpu: bytes that the members held on GPUs and in GTT before the stop, and that they hold no
            longer. None if that is not known: there is no GPU, a device does not report which
            processes use it, or `memory_release_seconds` is 0.
        gpu_left: bytes on GPUs and in GTT that drivers still report for the members; None if that
            is not known.
        seconds: the time from the end of the last member until the GPU memory was free, or until
            the wait for it ended; 0 without a wait.
    """

    memory: Bytes | None = None
    gpu: Bytes | None = None
    gpu_left: Bytes | None = None
    seconds: float = 0.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep found out about one backend.

    Attributes:
        backend: the backend.
        reading: its own reading, as `/backend/monitor` gives it; None before the first sweep.
        memory: its memory, also where it gave no status; None if that is not known.
        memory_source: where the total comes from: `backend`, `pss` or `rss`.
        process: the usage of the registered process; None if it cannot be read.
        tree: the usage of its process tree; None if it cannot be read.
        last_state: the last state that it reported, kept while readings have no status; None if it
            never reported one.
        state_changed_at: when the monitor first saw that state, in seconds since the epoch.
        starting: whether it has not answered yet at its address, while `start_grace_seconds` last.
        served_by: PID of the member of the backend that listens at its address; None if none is
            seen to.
        limits: the limits of its registered process if they differ from the monitor's limits, else
            None.
        ready_seconds: the time from the creation of its process to the first READY that was seen;
            None before that READY, and if the backend was READY when it was first read.
        ready_at: when the first READY was seen, in seconds since the epoch; None before that.
        awaits_pss: whether PSS of its process tree was not read yet, or is outdated. Until it is
            read, the memory of the tree is RSS, in which shared pages count once per process.
        answered: whether it has answered at its address, with a status or an error, or a hook gave
            its status.
        gpu_utilization_percent: the highest utilization of the GPUs that its members use, and no
            other process. None if there is no such GPU, or if its utilization is not known.
    """

    backend: Backend
    reading: Reading | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    process: ProcessUsage | None = None
    tree: TreeUsage | None = None
    last_state: State | None = None
    state_changed_at: float | None = None
    served_by: int | None = None
    starting: bool = False
    limits: Limits | None = None
    ready_seconds: float | None = None
    ready_at: float | None = None
    awaits_pss: bool = False
    answered: bool = False
    gpu_utilization_percent: float | None = None

    @property
    def state(self) -> int | None:
        """The state that it reports now; None if it reports none."""
        return self.reading.status.state if self.reading and self.reading.status else None

    @property
    def state_name(self) -> str:
        """The name of that state; `starting` or `unknown` if it reports none."""
        return STARTING if self.starting and self.state is None else state_name(self.state)


class HookFigures(msgspec.Struct, frozen=True):
    """Counts and durations of the calls to one plugin's implementation of a hook.

    Attributes:
        name: the name of the hook.
        calls: the number of calls.
        errors: how many of them raised, or returned a value that the hook does not allow.
        overruns: how many of them exceeded their time.
        seconds_total: the duration of all calls. Of a call that exceeded its time and has not
            returned yet, only the time up to the limit counts.
        seconds_max: the duration of the longest call.
    """

    name: str
    calls: int
    errors: int
    overruns: int
    seconds_total: float
    seconds_max: float


class EventFigures(msgspec.Struct, frozen=True):
    """How far a plugin is behind with the events that its hooks are called with.

    Attributes:
        waiting: how many events wait for the plugin.
        oldest_seconds: how long the oldest of them has waited; 0 if none waits.
        coalesced: how many changes of state were not reported one by one, because the plugin was
            behind: it got the newest state.
        dropped: how many events the plugin will not get, because too many waited, or because its
            hook did not return.
    """

    waiting: int = 0
    oldest_seconds: float = 0.0
    coalesced: int = 0
    dropped: int = 0


class LoadedPlugin(msgspec.Struct, frozen=True):
    """A plugin whose hooks the monitor calls.

    Attributes:
        name: the name under which it is registered.
        source: the path of a hook file, the name and version of a distribution, `plugins=`, or the
            plugin manager in which a host registered it.
        hooks: the hooks that it implements.
        events: how far the plugin is behind with its events; None if it implements no hook that
            reports events.
    """

    name: str
    source: str
    hooks: tuple[HookFigures, ...]
    events: EventFigures | None = None
