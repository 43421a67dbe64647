"""The adapter to supervisord: an event listener in a process of its own.

What runs is asked of supervisord (`getAllProcessInfo`), after each event and now and then; models
are stopped by it (`stopProcess`), so that it does not start them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.states import RUNNING_STATES, ProcessStates, getProcessStateDescription
from supervisor.xmlrpc import Faults

from ...concurrency.signals import Signals
from ...config.settings import Settings
from ...domain.errors import MonitorError, ShutdownFailed
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...processes.process_table import read_row
from ..discovery import Program, Rule, find_backends
from ..poller import Poller
from ..registry_sync import RegistrySync
from .events import EventProtocol
from .rpc import CallFailed, Supervisord

_LOOK_SECONDS = 0.1
# supervisord starts what has exited again at its next tick, which comes each second.
_EXITED_SECONDS = 1.5
# It kills what is asked to stop right after stopwaitsecs, which often is as long as the timeout.
_KILL_SECONDS = 0.5

NO_SERVER = """supervisord has no HTTP server by which it could be asked what runs; its \
configuration must have

[unix_http_server]
file=/run/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

(outside supervisord, --server-url says where its server is)"""


class Adapter:
    """A plugin of a monitor: registers supervisord's backends, and has it stop them.

    Args:
        supervisord: whose programs they are.
        rules: which programs are backends, besides those that say so themselves.
        hook_timeout_seconds: the monitor's, by which the hook may overrun the timeout of a stop.
    """

    def __init__(
        self,
        supervisord: Supervisord,
        rules: Sequence[Rule] = (),
        hook_timeout_seconds: float = 1.0,
    ) -> None:
        self._supervisord = supervisord
        self._rules = rules
        self._kill_seconds = min(_KILL_SECONDS, hook_timeout_seconds / 2)
        self._roster: RegistrySync | None = None
        self._closing = threading.Event()
        self._follower = Poller("monitor-supervisord", self._look)

    def hint(self) -> None:
        """Say that something may have changed in supervisord."""
        self._follower.hint()

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Begin to keep the monitor's registry in line with what runs."""
        self._roster = RegistrySync(monitor)
        self._follower.start()

    @hookimpl
    def monitor_closing(self) -> None:
        """End it, and the waits for what is being stopped."""
        self._closing.set()
        self._follower.close()

    def _look(self) -> None:
        infos = self._supervisord.call("getAllProcessInfo")
        run = [info for info in infos if info["state"] in RUNNING_STATES and info["pid"]]
        found = find_backends(map(_program, run), self._rules)
        if self._roster and not self._closing.is_set():
            self._roster.sync(found)

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Have supervisord stop the backend's program, whichever process it has by now.

        Returns None once supervisord has stopped it, or is about to kill it, which leaves what its
        process left behind (a shell's child, say) to the monitor; or where the backend is none of
        its programs.
        """
        try:
            name = self._program_of(backend.pid)
            if name is not None:
                self._stop(backend, name, timeout_seconds)
            return None
        except CallFailed as error:
            raise ShutdownFailed(backend.model, str(error)) from None

    def _program_of(self, pid: int) -> str | None:
        """Find the program to which a process belongs, or belonged."""
        infos = self._supervisord.call("getAllProcessInfo")
        names = {info["pid"]: _program(info).name for info in infos}
        ancestor = pid
        while ancestor > 1:
            if ancestor in names:
                return names[ancestor]
            row = read_row(ancestor)
            ancestor = row.parent if row else 0
        return self._roster.name_of(pid) if self._roster else None

    def _stop(self, backend: Backend, name: str, seconds: float) -> None:
        """Stop a program in whatever state it is, and see that it stays so."""
        deadline = time.monotonic() + seconds + self._kill_seconds
        exited_at = None
        while True:
            state = self._state(name)
            if state in RUNNING_STATES:
                self._begin_stop(name)
            elif state in (None, ProcessStates.STOPPED, ProcessStates.FATAL):
                return None
            elif state == ProcessStates.EXITED:
                exited_at = exited_at or time.monotonic()
                if time.monotonic() >= exited_at + _EXITED_SECONDS:
                    return None
            elif state != ProcessStates.STOPPING:
                what = getProcessStateDescription(state)
                raise ShutdownFailed(backend.model, f"program {name!r} is in state {what}")
            if time.monotonic() >= deadline:
                return self._check_patience(backend, name, seconds)
            if self._closing.wait(_LOOK_SECONDS):
                why = f"the monitor was closed while supervisord was stopping program {name!r}"
                raise ShutdownFailed(backend.model, why)

    def _state(self, name: str) -> int | None:
        """Ask for a program's state; None where there is no such program any more."""
        try:
            return int(self._supervisord.call("getProcessInfo", name)["state"])
        except CallFailed as error:
            if error.fault == Faults.BAD_NAME:
                return None
            raise

    def _begin_stop(self, name: str) -> None:
        try:
            # Without waiting: that could take longer than a call may.
            self._supervisord.call("stopProcess", name, False)
        except CallFailed as error:
            # It ended just now, or is gone with its group: the next look tells.
            if error.fault not in (Faults.NOT_RUNNING, Faults.BAD_NAME):
                raise

    def _check_patience(self, backend: Backend, name: str, seconds: float) -> None:
        """Raise where supervisord kills a program later than the monitor waits for it."""
        for info in self._supervisord.call("getAllConfigInfo"):
            if _program({**info, "pid": 0}).name == name and info["stopwaitsecs"] > seconds:
                raise ShutdownFailed(
                    backend.model,
                    f"program {name!r} has stopwaitsecs={info['stopwaitsecs']} to end itself, and "
                    f"did not within the {seconds:g} s of stop_timeout_seconds, which should not "
                    "be shorter; supervisord goes on stopping it",
                )


def _program(info: Mapping[str, Any]) -> Program:
    name = f"{info['group']}:{info['name']}"
    shown = info["name"] if info["group"] == info["name"] else name
    return Program(name, shown, info["pid"])


def run(
    settings: Settings, rules: Sequence[Rule], server_url: str | None, environ: Mapping[str, str]
) -> int:
    """Be supervisord's event listener, until it ends that, or SIGTERM or SIGINT.

    Args:
        settings: the monitor's.
        rules: which programs are backends, besides those that say so themselves.
        server_url: of supervisord's HTTP server; None for what supervisord says.
        environ: where supervisord says it, and the operator the credentials.

    Raises:
        MonitorError: supervisord's configuration, or a setting, cannot be used.
    """
    protocol = EventProtocol.claim()
    url = server_url or environ.get("SUPERVISOR_SERVER_URL")
    if not url:
        raise MonitorError(NO_SERVER)
    credentials = environ.get("SUPERVISOR_USERNAME"), environ.get("SUPERVISOR_PASSWORD")
    supervisord = Supervisord(url, *credentials)
    try:
        supervisord.call("getState")
    except CallFailed as error:
        if error.for_good:
            raise MonitorError(str(error)) from None
    adapter = Adapter(supervisord, rules, settings.hook_timeout_seconds)
    signals = Signals()

    def serve_events() -> None:
        try:
            protocol.run(adapter.hint)
        finally:
            signals.end()

    with Monitor(settings, [adapter]) as monitor:
        threading.Thread(target=serve_events, name="monitor-events", daemon=True).start()
        signals.wait(monitor.reload_tokens)
    return 0
