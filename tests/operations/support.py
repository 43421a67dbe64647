"""A host of the tests of operations: it runs real processes, and can start and stop them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence

from monitor_plugin import Backend as BackendRecord
from monitor_plugin import KnownModel, Monitor, StartFailed, State, Status, hookimpl
from monitor_plugin.shutdown.coordinator import Progress

from ..support import Spawner, register


class EmbeddedHost:
    """Starts the programs of models for the monitor, and lists no models.

    Args:
        spawner: kills the processes after the test.

    Attributes:
        programs: start the processes of each model.
        calls: the models for which `monitor_start_model` was called.
        fails: the reason with which each start fails; None: it does not.
        may_start: a start waits until it is set.
        busy: models whose backends are BUSY.
        loads_forever: models whose backends stay UNINITIALIZED.
    """

    def __init__(self, spawner: Spawner) -> None:
        self.spawner = spawner
        self.programs: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []
        self.fails: str | None = None
        self.may_start = threading.Event()
        self.may_start.set()
        self.busy: set[str] = set()
        self.loads_forever: set[str] = set()
        self.monitor: Monitor | None = None

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        self.monitor = monitor

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        if model not in self.programs:
            return None
        self.calls.append(model)
        self.may_start.wait(60)
        if self.fails:
            raise StartFailed(model, self.fails)
        self.programs[model]()
        return True

    def process_of(self, model: str, *command: str) -> subprocess.Popen[str]:
        """Start a process that serves nothing, and register it."""
        process = self.spawner.process(*(command or ("sleep", "1000")))
        self.register(model, process, f"unix:/{process.pid}")
        return process

    def register(self, model: str, process: subprocess.Popen[str], address: str) -> None:
        """Register a process, and reap it when it has ended."""
        assert self.monitor
        threading.Thread(target=process.wait, daemon=True).start()
        register(self.monitor, process.pid, model, address)

    def answers(self) -> object:
        """Make a plugin that gives the status of all backends."""
        return _Answers(self)

    def progress(self) -> list[Progress]:
        """List the shutdowns in progress."""
        assert self.monitor
        return list(self.monitor._services.shutdown_coordinator.progress().values())


class _Answers:
    def __init__(self, host: EmbeddedHost) -> None:
        self._host = host

    @hookimpl
    def monitor_query_status(self, backend: BackendRecord) -> Status:
        if backend.model in self._host.loads_forever:
            return Status(State.UNINITIALIZED)
        return Status(State.BUSY if backend.model in self._host.busy else State.READY)


class ListingHost(EmbeddedHost):
    """A host that also lists its models.

    Attributes:
        states: what it says of each model.
        list_error: what it raises instead; None: nothing.
    """

    def __init__(self, spawner: Spawner) -> None:
        super().__init__(spawner)
        self.states: dict[str, KnownModel] = {}
        self.list_error: Exception | None = None

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        if self.list_error:
            raise self.list_error
        return list(self.states.values())
