"""What a host says of the units in which it runs backends, such as systemd of its services."""

from __future__ import annotations

import msgspec

from .models import Bytes


class HostUnit(msgspec.Struct, frozen=True, kw_only=True):
    """The unit in which a host runs a backend, with the host's own figures. None means unknown.

    Attributes:
        manager: the host, such as `systemd`.
        name: the unit, such as `llama@1.service`.
        memory_current: bytes that the unit's processes use now (systemd: `MemoryCurrent`).
        memory_max: bytes that they may use (`MemoryMax`); None also if there is no limit.
        memory_peak: the most bytes that they have used (`MemoryPeak`).
        tasks: the number of their threads (`TasksCurrent`).
        cpu_quota: CPU cores that they may use (`CPUQuotaPerSecUSec`); None also without a limit.
        restarts: how many times the host has restarted the unit by itself (`NRestarts`).
    """

    manager: str
    name: str
    memory_current: Bytes | None = None
    memory_max: Bytes | None = None
    memory_peak: Bytes | None = None
    tasks: int | None = None
    cpu_quota: float | None = None
    restarts: int | None = None


class HostExit(msgspec.Struct, frozen=True, kw_only=True):
    """What a host says of how a backend ended.

    Attributes:
        result: the host's own word, such as systemd's `oom-kill`, `watchdog` or `timeout`. The
            monitor understands `oom-kill`: memory ran out in the unit.
        exit_code: the exit code; None if it is not known, or a signal ended the process.
        signal: the number of the signal that ended it; None if it is not known, or none did.
        manager: the host, such as `systemd`; for people.
    """

    result: str
    exit_code: int | None = None
    signal: int | None = None
    manager: str | None = None
