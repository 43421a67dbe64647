"""Calls to supervisord, by its XML-RPC over a unix socket or TCP, and why they failed."""

from __future__ import annotations

import http.client
import xmlrpc.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from supervisor.xmlrpc import Faults, SupervisorTransport

from ...domain.errors import MonitorError

_CALL_SECONDS = 10.0
# Another server than supervisord's answers no XML, or none that is a value.
_ERRORS = (OSError, ValueError, http.client.HTTPException, xmlrpc.client.Error, ExpatError)


class CallFailed(Exception):
    """A call to supervisord failed.

    Attributes:
        fault: the number of its fault, where it answered with one.
        for_good: whether its configuration must be changed first.
    """

    def __init__(self, message: str, fault: int | None = None, for_good: bool = False) -> None:
        super().__init__(message)
        self.fault = fault
        self.for_good = for_good


class Supervisord:
    """Calls a supervisord, each time by a connection of its own. Safe to use from any thread.

    Args:
        url: `http://HOST:PORT` or `unix:///PATH` of its HTTP server.
        username, password: what the server wants, if anything.

    Raises:
        MonitorError: the URL is neither, or holds credentials.
    """

    def __init__(self, url: str, username: str | None = None, password: str | None = None) -> None:
        # Not shown, however mistyped: it holds a password. A path may have an @.
        if "@" in url and not url.startswith("unix:///"):
            raise MonitorError(
                "supervisord's URL must not hold credentials: set SUPERVISOR_USERNAME and "
                "SUPERVISOR_PASSWORD"
            )
        try:
            urlsplit(url)
            good = url.startswith(("http://", "unix://"))
        except ValueError:  # http://[
            good = False
        if not good:
            raise MonitorError(f"supervisord's URL {url!r} is neither http://... nor unix://...")
        self.url = url
        self._username = username
        self._password = password

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of its namespace `supervisor`.

        Raises:
            CallFailed: it could not be called, or answered with a fault.
        """
        try:
            transport = _Transport(self._username, self._password, self.url)
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except _ERRORS as error:
            raise self._failed(method, error) from None

    def _failed(self, method: str, error: Exception) -> CallFailed:
        if isinstance(error, xmlrpc.client.ProtocolError) and error.errcode == 401:
            return CallFailed(
                f"supervisord at {self.url} wants a name and a password: the section of its "
                "configuration that runs the monitor must have environment=SUPERVISOR_USERNAME="
                '"...",SUPERVISOR_PASSWORD="...", with those of [unix_http_server] or '
                "[inet_http_server]",
                for_good=True,
            )
        if isinstance(error, xmlrpc.client.Fault):
            if error.faultCode == Faults.UNKNOWN_METHOD:
                return CallFailed(
                    f"supervisord at {self.url} does not know {method}: its configuration must "
                    "have [rpcinterface:supervisor] with supervisor.rpcinterface_factory="
                    "supervisor.rpcinterface:make_main_rpcinterface",
                    error.faultCode,
                    for_good=True,
                )
            why = f"fault {error.faultCode}, {error.faultString}"
            return CallFailed(f"supervisord answered to {method}: {why}", error.faultCode)
        if isinstance(error, PermissionError):
            return CallFailed(
                f"supervisord's socket {self.url} may not be used by the monitor's user: see "
                "chmod= and chown= of [unix_http_server], and user= of the section that runs it",
                for_good=True,
            )
        return CallFailed(f"supervisord at {self.url} cannot be asked: {error}")


class _Transport(SupervisorTransport):  # type: ignore[misc] # it has no types
    """supervisord's own transport, which waits for no answer longer than a while."""

    _get_connection: Callable[[], http.client.HTTPConnection]

    def __init__(self, username: str | None, password: str | None, url: str) -> None:
        super().__init__(username, password, url)
        self._made = self._get_connection()
        self._made.timeout = _CALL_SECONDS
        self._get_connection = self._connected

    def _connected(self) -> http.client.HTTPConnection:
        self._made.connect()
        self._made.sock.settimeout(_CALL_SECONDS)  # which that of a unix socket does not set
        return self._made

    def close(self) -> None:
        super().close()
        self._made.close()  # one that failed while it was made, too
