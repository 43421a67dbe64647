"""Calls to systemd over D-Bus, and the signals that systemd sends about its units.

The client uses dbus-fast's messages and no proxies: a proxy would ask systemd for the description
of each unit's interfaces first.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from dbus_fast import BusType, Message, MessageFlag, MessageType, unpack_variants
from dbus_fast.aio import MessageBus

from ...concurrency.loop_thread import LoopThread

_logger = logging.getLogger(__name__)

_NAME = "org.freedesktop.systemd1"
_ROOT = "/org/freedesktop/systemd1"
_UNITS = f"{_ROOT}/unit/"
SERVICE = f"{_NAME}.Service"
_MANAGER = f"{_NAME}.Manager"
_BUS = "org.freedesktop.DBus"
_BUS_PATH = "/org/freedesktop/DBus"
_PROPERTIES = f"{_BUS}.Properties"
_NO_SUCH_UNIT = f"{_NAME}.NoSuchUnit"

CALL_SECONDS = 10.0
_RECONNECT_SECONDS = 0.5
# The number of ended jobs whose results are known.
_MAX_JOBS = 1000

# Is called with the name of a service, or with None if any may have changed, and with properties
# that have changed.
OnChange = Callable[[str | None, Mapping[str, Any]], None]

# What a connection receives. systemd sends its signals only while somebody has called `Subscribe`.
_MATCHES = (
    f"type='signal',sender='{_NAME}',path='{_ROOT}',interface='{_MANAGER}'",
    f"type='signal',sender='{_NAME}',path_namespace='{_UNITS[:-1]}',member='PropertiesChanged'",
    f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
)
_MANAGER_SIGNALS_OF_UNITS = ("UnitNew", "UnitRemoved")
# While systemd or the bus starts anew, the bus answers with other errors, such as `NoReply`.
_ANSWERS = (
    f"{_NAME}.",
    f"{_BUS}.Error.AccessDenied",
    f"{_BUS}.Error.InteractiveAuthorizationRequired",
    f"{_BUS}.Error.InvalidArgs",
    f"{_BUS}.Error.UnknownObject",
)
_REFUSALS = (
    f"{_BUS}.Error.InteractiveAuthorizationRequired",
    f"{_BUS}.Error.AccessDenied",
)


class SystemdError(Exception):
    """A call to systemd failed.

    Attributes:
        name: the name of the error with which systemd or the bus answered; None without an answer.
        is_refusal: whether systemd does not let the monitor's user do this.
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.is_refusal = name in _REFUSALS

    @property
    def is_unknown_unit(self) -> bool:
        """Whether systemd has no such unit."""
        return self.name == _NO_SUCH_UNIT

    @property
    def is_answer(self) -> bool:
        """Whether systemd itself has answered, and not the bus in its place, or nothing."""
        return self.name is not None and self.name.startswith(_ANSWERS)


class SystemdClient:
    """Calls a systemd, and reports its signals. Its methods may be called from any thread.

    The connection is made anew whenever it was lost, as by a restart of the bus. Signals that were
    lost meanwhile, or by a restart of systemd itself (`daemon-reexec`), are made up for: then, and
    after `daemon-reload`, all services count as changed.

    Args:
        user: whether to use the manager of the monitor's user, and not the manager of the system.

    Attributes:
        is_user: `user`.
    """

    def __init__(self, user: bool) -> None:
        self.is_user = user
        self._manager = "the user's systemd" if user else "systemd"
        self._on_change: OnChange
        self._thread = LoopThread("monitor-systemd-bus", self._stay_connected, self._closed)
        self._bus: MessageBus | None = None
        self._owner = ""  # the name of systemd's connection to the bus
        self._first_attempt: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._last_error = ""
        self._jobs: dict[str, str] = {}  # the results of jobs that have ended, by their paths
        self._job_ended = asyncio.Event()  # set and cleared on the loop

    def start(self, on_change: OnChange) -> None:
        """Start the thread, and wait until the first attempt to connect has ended.

        Args:
            on_change: is called when a service has changed or was loaded or unloaded, on the
                thread of the connection, and must not block.

        Raises:
            SystemdError: systemd could not be reached. The attempts go on until `close`.
        """
        self._on_change = on_change
        self._thread.start()
        try:
            self._first_attempt.result(2 * CALL_SECONDS)
        except concurrent.futures.TimeoutError:
            why = self._last_error or "the bus does not answer"
            raise SystemdError(f"{self._manager} cannot be reached: {why}") from None

    def close(self) -> None:
        """End the thread. Calls that have not been answered raise `SystemdError`."""
        self._thread.close()

    def manager_call(self, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of systemd's manager; return its first result, None if there is none.

        Raises:
            SystemdError: systemd did not answer within 10 s, or answered with an error.
        """
        return self._thread.run(self._call(_ROOT, _MANAGER, member, signature, *body))

    def manager_property(self, name: str) -> Any:
        """Return a property of systemd's manager.

        Raises:
            SystemdError: systemd did not answer within 10 s, or answered with an error.
        """
        return self._thread.run(self._call(_ROOT, _PROPERTIES, "Get", "ss", _MANAGER, name))

    def properties(
        self, unit: str, interface: str = "", seconds: float = CALL_SECONDS
    ) -> dict[str, Any]:
        """Return the properties of a unit. systemd loads the unit for that if it is not loaded.

        Args:
            unit: the name of the unit.
            interface: the interface whose properties are read; empty: all of the unit.
            seconds: the time limit.

        Raises:
            SystemdError: systemd did not answer in time, or answered with an error.
        """
        path = unit_path(unit)
        call = self._call(path, _PROPERTIES, "GetAll", "s", interface, seconds=seconds)
        properties: dict[str, Any] = self._thread.run(call)
        return properties

    def start_job(self, member: str, unit: str, seconds: float) -> str:
        """Have systemd start or stop a unit (`StartUnit`, `StopUnit`); return the path of the job.

        Raises:
            SystemdError: systemd did not answer in time, or answered with an error.
        """
        call = self._call(_ROOT, _MANAGER, member, "ss", unit, "replace", seconds=seconds)
        return str(self._thread.run(call))

    def wait_for_job(self, job: str, seconds: float) -> str | None:
        """Wait until a job has ended; return its result, such as `done` or `canceled`.

        Returns None if it has not ended after `seconds`, or if its end was missed.
        """
        return self._thread.run(self._wait_for_job(job, seconds))

    async def _wait_for_job(self, job: str, seconds: float) -> str | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while job not in self._jobs:
            self._job_ended.clear()
            try:
                await asyncio.wait_for(self._job_ended.wait(), deadline - loop.time())
            except asyncio.TimeoutError:
                return None
        return self._jobs[job]

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *body: Any,
        seconds: float = CALL_SECONDS,
    ) -> Any:
        """Call a method, and return its first result; None if there is none."""
        bus = self._bus
        if bus is None:
            raise SystemdError(f"{self._manager} cannot be reached: {self._last_error}")
        return await self._call_on(
            bus, _NAME, path, interface, member, signature, *body, seconds=seconds
        )

    async def _call_on(
        self,
        bus: MessageBus,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *body: Any,
        seconds: float = CALL_SECONDS,
    ) -> Any:
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            # Else the bus would start a service by systemd while systemd itself is away.
            flags=MessageFlag.NO_AUTOSTART,
        )
        try:
            reply = await asyncio.wait_for(bus.call(message), seconds)
        except asyncio.TimeoutError:
            raise SystemdError(
                f"{self._manager} did not answer {member} within {seconds:.1f} s"
            ) from None
        except (OSError, EOFError) as error:
            raise SystemdError(f"the connection to {self._manager} was lost: {error}") from None
        if reply is None:
            raise SystemdError(f"the connection to {self._manager} was lost")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body else reply.error_name
            raise SystemdError(f"{self._manager} answered to {member}: {text}", reply.error_name)
        return unpack_variants(reply.body[0]) if reply.body else None

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._serve_connection()
            except Exception as error:  # dbus-fast raises errors of many types
                self._record_failure(error)
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _record_failure(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self._last_error and self._first_attempt.done():
            _logger.warning("%s cannot be reached: %s", self._manager, text)
        self._last_error = text
        # At the boot of the machine, the bus may be there before systemd has connected to it.
        is_early = isinstance(error, SystemdError) and error.name == f"{_BUS}.Error.NameHasNoOwner"
        if not (is_early or self._first_attempt.done()):
            self._first_attempt.set_exception(
                SystemdError(f"{self._manager} cannot be reached: {text}")
            )

    async def _serve_connection(self) -> None:
        """Connect to the bus, and serve the connection until it is lost."""
        bus = MessageBus(_bus_address(self.is_user), BusType.SYSTEM)
        try:
            await asyncio.wait_for(bus.connect(), CALL_SECONDS)
            bus.add_message_handler(self._handle)
            for rule in _MATCHES:
                await self._call_on(bus, _BUS, _BUS_PATH, _BUS, "AddMatch", "s", rule)
            self._bus = bus
            await self._subscribe()
            if self._last_error:
                _logger.info("%s can be reached again", self._manager)
            self._last_error = ""
            if not self._first_attempt.done():
                self._first_attempt.set_result(None)
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
            raise SystemdError("the bus has closed the connection")
        finally:
            self._bus = None
            bus.disconnect()

    async def _subscribe(self) -> None:
        """Have systemd send its signals, and report that any service may have changed."""
        assert self._bus
        self._jobs.clear()  # another systemd may number its jobs from the start
        self._owner = await self._call_on(
            self._bus, _BUS, _BUS_PATH, _BUS, "GetNameOwner", "s", _NAME
        )
        try:
            await self._call(_ROOT, _MANAGER, "Subscribe")
        except SystemdError as error:
            if error.name != f"{_NAME}.AlreadySubscribed":
                raise
        self._on_change(None, {})

    async def _subscribe_again(self) -> None:
        """Subscribe after a restart of systemd. A bus without systemd is left, to try again."""
        try:
            if self._bus:  # else the connection was lost, and a new one subscribes
                await self._subscribe()
        except SystemdError as error:
            self._record_failure(error)
            if self._bus:
                self._bus.disconnect()

    def _handle(self, message: Message) -> None:
        """Handle a signal of systemd or of the bus. Any user can send others to this connection."""
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == _BUS:
            if message.member == "NameOwnerChanged" and message.body[2]:
                self._thread.spawn(self._subscribe_again())
        elif message.sender == self._owner:
            self._handle_signal(message)

    def _handle_signal(self, message: Message) -> None:
        if message.member == "PropertiesChanged":
            name = unit_name(message.path or "")
            if name.endswith(".service"):
                self._on_change(name, unpack_variants(message.body[1]))
        elif message.member in _MANAGER_SIGNALS_OF_UNITS:
            name = message.body[0]
            if name.endswith(".service"):
                self._on_change(name, {})
        elif message.member == "JobRemoved":
            _, job, _, result = message.body
            self._record_job(job, result)
        elif (
            message.member == "Reloading" and not message.body[0]
        ) or message.member == "UnitFilesChanged":
            self._on_change(None, {})

    def _record_job(self, job: str, result: str) -> None:
        self._jobs[job] = result
        if len(self._jobs) > _MAX_JOBS:
            del self._jobs[next(iter(self._jobs))]
        self._job_ended.set()

    def _closed(self) -> SystemdError:
        return SystemdError(f"the monitor does not run, and does not ask {self._manager}")


def _bus_address(user: bool) -> str | None:
    """Return the address of the user's bus; None for the system's, which dbus-fast finds."""
    if not user:
        return None
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={folder}/bus"


def unit_path(name: str) -> str:
    """Return the path of a unit's object: each byte that is no letter or digit becomes `_XX`."""
    escaped = "".join(
        chr(byte) if chr(byte).isalnum() and byte < 128 else f"_{byte:02x}"
        for byte in name.encode()
    )
    if escaped[:1].isdigit():
        escaped = f"_{ord(escaped[0]):02x}{escaped[1:]}"
    return _UNITS + escaped


def unit_name(path: str) -> str:
    """Return the name of the unit whose object has that path."""
    escaped = path.removeprefix(_UNITS)
    data = re.sub(rb"_([0-9a-f]{2})", lambda each: bytes([int(each[1], 16)]), escaped.encode())
    return data.decode(errors="replace")
