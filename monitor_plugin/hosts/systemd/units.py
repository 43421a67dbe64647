"""The services that systemd has, as its signals report them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...domain.exits import signal_name
from ...domain.known_models import KnownModel
from ...domain.units import HostUnit
from ...processes.process_table import read_row
from ..discovery import Program
from ..model_states import ProgramState, merge_states
from .client import CALL_SECONDS, SystemdClient, SystemdError
from .logs import streams_in_journal

_SUFFIX = ".service"

# systemd reports no unit file that is copied to its place, or removed, before the next
# `daemon-reload`. So all units are read again from time to time. That also ends the effect of a
# signal that got lost.
_READ_ALL_SECONDS = 600.0

# systemd's "infinity" and "not set".
_UNSET = 2**64 - 1

# systemd.exec(5), "Process Exit Codes": the values of `ExecMainCode`, which are those of waitid(2).
_EXITED, _KILLED, _DUMPED = 1, 2, 3

# The states of a model for those of a unit. `auto-restart` is a substate: see `_model_state`.
_MODEL_STATES = {
    "active": "running",
    "reloading": "running",
    "refreshing": "running",
    "activating": "starting",
    "deactivating": "stopped",
    "inactive": "stopped",
    "failed": "failed",
    "maintenance": "failed",
}


class Unit(NamedTuple):
    """A service, with properties of systemd's D-Bus interface.

    Attributes:
        name: its name, with `.service`.
        load_state: `LoadState`.
        load_error: why it could not be loaded; empty if it could.
        active_state: `ActiveState`.
        sub_state: `SubState`.
        result: `Result`, which is `success` until something has failed.
        main_pid: `MainPID`; 0 if there is no main process. Of a running service of which systemd
            knows no main process, its oldest process.
        knows_main_pid: whether systemd knows the main process.
        exit_code, exit_status: `ExecMainCode` and `ExecMainStatus` of the last main process.
        started_at: when the last main process was started, in microseconds since the epoch; 0 if
            none was.
        invocation_id: the ID of its current or last run, in hexadecimal digits; empty if there was
            none.
        stop_seconds: how long systemd lets it end after a stop; None: without a limit.
        condition_result: whether the conditions of the unit were met at its last start.
        command: the command line of its `ExecStart=`.
        environment: the variables of its `Environment=`.
        journal_streams: which of its streams go to the journal.
        is_transient: whether it has no file, so that it cannot be started again once it has ended.
    """

    name: str
    load_state: str = "loaded"
    load_error: str = ""
    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str = "success"
    main_pid: int = 0
    knows_main_pid: bool = True
    exit_code: int = 0
    exit_status: int = 0
    started_at: int = 0
    invocation_id: str = ""
    stop_seconds: float | None = None
    condition_result: bool = True
    command: Sequence[str] = ()
    environment: Mapping[str, str] = {}
    journal_streams: frozenset[str] = frozenset()
    is_transient: bool = False

    @property
    def display_name(self) -> str:
        """Its name without `.service`."""
        return self.name.removesuffix(_SUFFIX)

    @property
    def has_ended(self) -> bool:
        """Whether it does not run, and systemd will not start it by itself."""
        return self.active_state in ("inactive", "failed")

    @property
    def can_run(self) -> bool:
        """Whether it runs, or has a file from which systemd can start it or says why it cannot."""
        return not self.has_ended or self.load_state in ("loaded", "bad-setting", "error")

    @property
    def state(self) -> str:
        """Its state for people, as `systemctl status` shows it: `active (running)`."""
        return f"{self.active_state} ({self.sub_state})"

    @property
    def failure(self) -> str:
        """What systemd says of its last end: `oom-kill: its process was killed by SIGKILL`."""
        if self.result == "start-limit-hit":
            how = f"it was started too often; systemctl reset-failed {self.name} allows a start"
        elif self.exit_code == _EXITED and self.exit_status:
            how = f"its process exited with code {self.exit_status}"
        elif self.exit_code in (_KILLED, _DUMPED):
            how = f"its process was killed by {signal_name(self.exit_status)}"
        else:
            return self.result
        return f"{self.result}: {how}"

    def program(self) -> Program:
        """Return the program for `Discovery`."""
        return Program(self.name, self.display_name, self.main_pid, self.command, self.environment)


def parse_unit(name: str, properties: Mapping[str, Any]) -> Unit:
    """Make the record of a service from its properties."""
    commands = properties.get("ExecStart") or [["", []]]
    variables = (each.partition("=") for each in properties.get("Environment", ()))
    stop_usec = properties.get("TimeoutStopUSec", _UNSET)
    return Unit(
        name,
        properties["LoadState"],
        properties.get("LoadError", ["", ""])[1],
        properties["ActiveState"],
        properties["SubState"],
        properties.get("Result", "success"),
        properties.get("MainPID", 0),
        True,
        properties.get("ExecMainCode", 0),
        properties.get("ExecMainStatus", 0),
        properties.get("ExecMainStartTimestamp", 0),
        bytes(properties.get("InvocationID", b"")).hex(),
        None if stop_usec == _UNSET else stop_usec / 1e6,
        properties.get("ConditionResult", True),
        commands[0][1],
        {key: value for key, _, value in variables},
        streams_in_journal(
            properties.get("StandardOutput", ""), properties.get("StandardError", "")
        ),
        properties.get("Transient", False),
    )


def describe_unit(name: str, properties: Mapping[str, Any]) -> HostUnit:
    """Make the description of a service from the properties of the interface `Service`."""

    def number(key: str) -> int | None:
        value = properties.get(key, _UNSET)
        return None if value == _UNSET else int(value)

    quota = number("CPUQuotaPerSecUSec")
    return HostUnit(
        manager="systemd",
        name=name,
        memory_current=number("MemoryCurrent"),
        memory_max=number("MemoryMax"),
        memory_peak=number("MemoryPeak"),
        tasks=number("TasksCurrent"),
        cpu_quota=None if quota is None else quota / 1e6,
        restarts=number("NRestarts"),
    )


class UnitTable:
    """The services that systemd has loaded, and those that are models. `refresh` is for one thread.

    systemd is asked only about units that have changed by its signals. To answer about a unit that
    is not loaded, systemd loads it with all units that it depends on, and unloads them soon. That
    takes 8 ms for each unit, and sends 14 signals. So systemd is asked about such a unit only if
    its file may make it a model, and not after a signal.

    Args:
        systemd: calls systemd.
        is_model: whether a service is a model, as far as that is known without its file.
    """

    def __init__(self, systemd: SystemdClient, is_model: Callable[[Unit], bool]) -> None:
        self._systemd = systemd
        self._is_model = is_model
        self._units: dict[str, Unit] = {}
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._all_changed = True
        self._read_at = -math.inf

    def record_change(self, name: str | None) -> None:
        """Record that a service has changed, or with None that all may have. Never blocks long."""
        with self._lock:
            if name is None:
                self._all_changed = True
            else:
                self._changed.add(name)

    def units(self) -> list[Unit]:
        """List the services, as the last `refresh` read them. May be called from any thread."""
        return list(self._units.values())

    def get(self, name: str) -> Unit | None:
        """Return a service as the last `refresh` read it. May be called from any thread."""
        return self._units.get(name)

    def refresh(self) -> None:
        """Read the services that have changed.

        Raises:
            SystemdError: systemd did not answer. The next call reads them.
        """
        with self._lock:
            names, self._changed = self._changed, set()
            # systemd sends no signal when such a process ends and another one goes on.
            names |= {
                each.name
                for each in self._units.values()
                if not each.knows_main_pid and read_row(each.main_pid) is None
            }
            is_due = self._all_changed or time.monotonic() > self._read_at + _READ_ALL_SECONDS
            self._all_changed = False
        try:
            if is_due:
                self._read_all()
            elif names:
                self._read_changed(names)
        except SystemdError:
            with self._lock:
                self._changed |= names
                self._all_changed |= is_due
            raise

    def _read_all(self) -> None:
        listed = self._list()
        names = {
            *(name for name, load_state in listed.items() if load_state != "not-found"),
            *self._list_files(),
            *(each.name for each in self._units.values() if self._is_model(each)),
        }
        units = {}
        for name in sorted(names):
            unit = self.read(name)
            if unit and unit.can_run:
                units[name] = unit
        self._units = units
        self._read_at = time.monotonic()

    def _read_changed(self, names: Iterable[str]) -> None:
        units = dict(self._units)
        listed = self._list(sorted(names))
        for name in names:
            before = units.pop(name, None)
            if name in listed:
                unit = self.read(name)
            elif before and not before.is_transient:
                unit = before._replace(active_state="inactive", sub_state="dead", main_pid=0)
            else:
                unit = None
            if unit and unit.can_run:
                units[name] = unit
        self._units = units

    def _list_files(self) -> list[str]:
        """List the services that have files, and may be models by a rule or by their files."""
        files = self._systemd.manager_call("ListUnitFilesByPatterns", "asas", [], ["*" + _SUFFIX])
        folders = self._systemd.manager_property("UnitPath")
        names = []
        for path, state in files:
            name = path.rpartition("/")[2]
            # A template is no service, and an alias is listed by its other name.
            if name.endswith("@" + _SUFFIX) or state.startswith(("alias", "masked")):
                continue
            if self._is_model(Unit(name)) or _has_address(Path(path), folders):
                names.append(name)
        return names

    def _list(self, patterns: Sequence[str] = ("*" + _SUFFIX,)) -> dict[str, str]:
        """Return the states of loading of the services that are loaded, by their names."""
        # Names have no character that a pattern would replace.
        listed = self._systemd.manager_call("ListUnitsByPatterns", "asas", [], list(patterns))
        return {name: load_state for name, _, load_state, *_ in listed}

    def read(self, name: str, seconds: float = CALL_SECONDS) -> Unit | None:
        """Read a service now; None if systemd cannot say anything about it.

        Raises:
            SystemdError: systemd did not answer in time.
        """
        try:
            unit = parse_unit(name, self._systemd.properties(name, seconds=seconds))
            if unit.active_state == "active" and not unit.main_pid and unit.sub_state != "exited":
                unit = unit._replace(main_pid=self._oldest_process(name), knows_main_pid=False)
            return unit
        except SystemdError as error:
            if error.is_answer:
                return None
            raise

    def _oldest_process(self, name: str) -> int:
        """Return the PID of the oldest process in the control group of a service; 0 if none runs.

        systemd cannot tell the main process if a service of `Type=forking` has several.
        """
        processes = self._systemd.manager_call("GetUnitProcesses", "s", name)
        rows = {pid: row for _, pid, _ in processes if (row := read_row(pid))}
        return min(rows, key=lambda pid: rows[pid].started, default=0)


def _has_address(path: Path, folders: Iterable[str]) -> bool:
    """Whether a unit file may declare an address, also in its parts `NAME.d/*.conf` in folders."""
    parts = (part for each in folders for part in Path(each, f"{path.name}.d").glob("*.conf"))
    for file in (path, *parts):
        with contextlib.suppress(OSError):
            text = file.read_text(errors="replace")
            if "MONITOR_ADDRESS" in text or "--addr" in text:
                return True
    return False


def known_models(models: Iterable[tuple[str, Unit]]) -> list[KnownModel]:
    """List the models of these services, each once."""
    return merge_states(
        ProgramState(model, unit.display_name, _model_state(unit), _detail(unit))
        for model, unit in models
    )


def _model_state(unit: Unit) -> str:
    if unit.sub_state.startswith("auto-restart"):
        return "waiting"
    if unit.sub_state == "exited":  # a service with RemainAfterExit=yes
        return "exited"
    if unit.load_error and unit.has_ended:
        return "failed"
    return _MODEL_STATES.get(unit.active_state, "stopped")


def _detail(unit: Unit) -> str | None:
    """Return what systemd says about the state; None if it says nothing that people need."""
    if unit.load_error:
        return unit.load_error
    if unit.active_state == "deactivating":
        return "systemd is stopping it"
    if unit.has_ended or _model_state(unit) == "waiting":
        return None if unit.result == "success" else unit.failure
    return None
