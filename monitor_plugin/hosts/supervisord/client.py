"""Calls to supervisord, by XML-RPC over a unix socket or TCP, and the reasons of failures."""

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
# A server that is not supervisord may answer with anything, such as XML that is not a value.
_ERRORS = (OSError, ValueError, http.client.HTTPException, xmlrpc.client.Error, ExpatError)


class SupervisordError(Exception):
    """A call to supervisord failed.

    Attributes:
        fault: the number of the fault with which supervisord answered; None if it did not.
        is_permanent: whether the call fails until supervisord's configuration is changed.
    """

    def __init__(self, message: str, fault: int | None = None, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.fault = fault
        self.is_permanent = is_permanent


class SupervisordClient:
    """Calls a supervisord, with one connection a call. May be used from any thread.

    Args:
        url: `http://HOST:PORT` or `unix:///PATH` of its HTTP server.
        username, password: the credentials, if the server requires them.

    Raises:
        MonitorError: the URL has another form, or holds credentials.
    """

    def __init__(self, url: str, username: str | None = None, password: str | None = None) -> None:
        # A URL with an @ may hold a password, so the message does not quote it. A path may have @.
        if "@" in url and not url.startswith("unix:///"):
            raise MonitorError(
                "supervisord's URL must not hold credentials: set SUPERVISOR_USERNAME and "
                "SUPERVISOR_PASSWORD"
            )
        try:
            urlsplit(url)
            good = url.startswith(("http://", "unix://"))
        except ValueError:  # such as http://[
            good = False
        if not good:
            raise MonitorError(f"supervisord's URL {url!r} is neither http://... nor unix://...")
        self.url = url
        self._username = username
        self._password = password

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the namespace `supervisor`.

        Raises:
            SupervisordError: supervisord did not answer, or answered with a fault.
        """
        try:
            transport = _Transport(self._username, self._password, self.url)
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except _ERRORS as error:
            raise self._error(method, error) from None

    def _error(self, method: str, error: Exception) -> SupervisordError:
        if isinstance(error, xmlrpc.client.ProtocolError) and error.errcode == 401:
            return SupervisordError(
                f"supervisord at {self.url} wants a name and a password: the section of its "
                "configuration that runs the monitor must have environment=SUPERVISOR_USERNAME="
                '"...",SUPERVISOR_PASSWORD="...", with those of [unix_http_server] or '
                "[inet_http_server]",
                is_permanent=True,
            )
        if isinstance(error, xmlrpc.client.Fault):
            if error.faultCode == Faults.UNKNOWN_METHOD:
                return SupervisordError(
                    f"supervisord at {self.url} does not know {method}: its configuration must "
                    "have [rpcinterface:supervisor] with supervisor.rpcinterface_factory="
                    "supervisor.rpcinterface:make_main_rpcinterface",
                    error.faultCode,
                    is_permanent=True,
                )
            why = f"fault {error.faultCode}, {error.faultString}"
            return SupervisordError(f"supervisord answered to {method}: {why}", error.faultCode)
        if isinstance(error, PermissionError):
            return SupervisordError(
                f"supervisord's socket {self.url} may not be used by the monitor's user: see "
                "chmod= and chown= of [unix_http_server], and user= of the section that runs it",
                is_permanent=True,
            )
        return SupervisordError(f"supervisord at {self.url} cannot be asked: {error}")


class _Transport(SupervisorTransport):  # type: ignore[misc] # it has no types
    """supervisord's own transport, with a timeout."""

    _get_connection: Callable[[], http.client.HTTPConnection]

    def __init__(self, username: str | None, password: str | None, url: str) -> None:
        super().__init__(username, password, url)
        self._connection = self._get_connection()
        self._connection.timeout = _CALL_SECONDS
        self._get_connection = self._connected

    def _connected(self) -> http.client.HTTPConnection:
        self._connection.connect()
        self._connection.sock.settimeout(
            _CALL_SECONDS
        )  # a connection to a unix socket ignores `timeout`
        return self._connection

    def close(self) -> None:
        super().close()
        self._connection.close()  # also a connection that could not be made
