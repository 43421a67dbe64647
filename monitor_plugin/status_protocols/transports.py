"""Chooses the protocol by which a backend is asked, and asks HTTP servers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..config.settings import Settings
from ..domain.address import is_http
from ..domain.models import Backend, State, Status
from ..domain.protocols import GRPC_PROTOCOLS, find_protocol
from ..processes.kernel_files import read_text
from ..rpc.call import NO_ANSWER, StatusOutcome
from ..rpc.channels import ChannelSecurity
from ..rpc.grpc_transport import LOCALAI, GrpcTransport
from ..rpc.transport import OTHER_PROTOCOL_PAUSE_SECONDS, Link, OpenChannel, Transport
from . import catalog
from .http_connection import ServerConnection
from .load import is_failure
from .protocol import Answer, BusyWhen, HttpProtocol, NoStatus

_logger = logging.getLogger(__name__)

_VARIABLE = "MONITOR_PROTOCOL="
_LOADING_READS = 5
_LOADING_PAUSE_SECONDS = 0.002


class Transports:
    """Chooses how each backend is asked. Safe to call from any thread.

    Args:
        settings: `protocol` and `busy_when` are used.
        security: decides which addresses may be called, and verifies servers by TLS.
    """

    def __init__(self, settings: Settings, security: ChannelSecurity) -> None:
        self._rules = settings.protocol
        self._busy_when: BusyWhen = settings.busy_when
        self._security = security

    def choose(
        self, backend: Backend, open_channel: OpenChannel, connected: Callable[[], object]
    ) -> Transport | None:
        """Choose the transport of a backend: see `ChooseTransport`."""
        name = _protocol_of_process(backend) or find_protocol(self._rules, backend.model)
        speaks_http = is_http(backend.address)
        if name is not None and speaks_http == (name in GRPC_PROTOCOLS):
            kind, other = ("gRPC", "HTTP") if name in GRPC_PROTOCOLS else ("HTTP", "gRPC")
            return RefusedTransport(
                "http" if speaks_http else "grpc",
                f"protocol {name!r} is one of {kind}, and the address {backend.address} is one of "
                f"{other}: name another protocol, or register another address",
            )
        if speaks_http:
            return HttpTransport(backend, name, self._busy_when, self._security, connected)
        if name in (None, LOCALAI):
            return None
        ask = catalog.GRPC_PROTOCOLS[str(name)]
        return GrpcTransport(backend, open_channel, str(name), ask)


def _protocol_of_process(backend: Backend) -> str | None:
    """Return the protocol that the environment of a backend's process names; None if none."""
    try:
        variables = _read_environment(backend.pid).split("\0")
    except PermissionError:  # logged once for each registration
        _logger.info(
            "model %r: the environment of process %d may not be read, so a MONITOR_PROTOCOL in it "
            "has no effect; use the setting protocol instead",
            *(backend.model, backend.pid),
        )
        return None
    except OSError:  # the process has ended
        return None
    for variable in variables:
        if variable.startswith(_VARIABLE) and variable != _VARIABLE:
            rules = [each.strip() for each in variable.removeprefix(_VARIABLE).split(",")]
            try:
                return find_protocol([each for each in rules if each], backend.model)
            except ValueError as error:
                text = "model %r (process %d): MONITOR_PROTOCOL of its process is ignored: %s"
                _logger.warning(text, backend.model, backend.pid, error)
                return None
    return None


def _read_environment(pid: int) -> str:
    """Read the environment of a process, whose host may have started it just now.

    While the kernel loads a program, the environment is empty, for less than a millisecond.

    Raises:
        OSError: it may not be read, or the process has ended.
    """
    path = f"/proc/{pid}/environ"
    for _ in range(_LOADING_READS):
        if text := read_text(path):
            return text
        time.sleep(_LOADING_PAUSE_SECONDS)
    return read_text(path)


class RefusedTransport:
    """Asks nothing, as the protocol that was named does not fit the address."""

    can_free = False

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self._outcome = StatusOutcome(
            None, "UNIMPLEMENTED", error_text=reason, pause_seconds=OTHER_PROTOCOL_PAUSE_SECONDS
        )

    def open(self) -> Link:
        """Open nothing."""
        return self

    def request_status(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Return the reason."""
        return self._outcome

    def free(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Return the reason."""
        return self._outcome

    def close(self) -> None:
        """Do nothing."""


class HttpTransport:
    """Asks one server by HTTP. It finds out the protocol, and keeps it.

    Args:
        backend: the backend.
        name: the name of the protocol; None finds out which one the server speaks.
        busy_when: when the server is BUSY.
        security: decides whether the address may be called, and verifies the server by TLS.
        connected: is called after each connection that was made.
    """

    source = "http"
    can_free = False

    def __init__(
        self,
        backend: Backend,
        name: str | None,
        busy_when: BusyWhen,
        security: ChannelSecurity,
        connected: Callable[[], object],
    ) -> None:
        self.backend = backend
        self._is_named = name is not None
        self._busy_when = busy_when
        self._security = security
        self._connected = connected
        self._may_be_another = False  # whether a connection was made since the server was known
        known = [each for each in catalog.HTTP_PROTOCOLS if each.name == name]
        self._protocol = known[0](backend.model, busy_when) if known else None

    def open(self) -> HttpLink:
        """Open a link: see `Transport.open`."""
        address = self.backend.address
        tls = self._security.http_tls(address)
        return HttpLink(self, ServerConnection(address, tls, self._note_connected))

    def _note_connected(self) -> None:
        self._may_be_another = True
        self._connected()

    def read(self, requests: _Requests) -> StatusOutcome:
        """Read the status, by the known protocol or by the first one that matches."""
        known = self._protocol
        protocol = known or self._detect(requests)
        if protocol is None:
            return StatusOutcome(_loading(requests.answers()), None, True, "http")
        try:
            status = protocol.read(requests.get)
        except NoStatus as error:
            if error.rpc_error != "UNIMPLEMENTED" or self._is_named:
                raise
            self._protocol = None
            if known is None:
                raise
            return self.read(requests)
        if known and not self._is_named and self._has_changed(known, requests):
            self._protocol = None
            return self.read(requests)
        self._protocol, self._may_be_another = protocol, False
        return StatusOutcome(status, None, True, "http", protocol.name)

    def _has_changed(self, known: HttpProtocol, requests: _Requests) -> bool:
        """Whether a server of another protocol has taken the place of the known one."""
        if not self._may_be_another:
            return False
        try:
            return not known.matches(requests.get) and self._detect(requests) is not None
        except NoStatus:
            return False

    def _detect(self, requests: _Requests) -> HttpProtocol | None:
        """Find the protocol of the server; None if the server is loading.

        Raises:
            NoStatus: the server did not answer, or knows none of the protocols.
        """
        for kind in catalog.HTTP_PROTOCOLS:
            protocol = kind(self.backend.model, self._busy_when)
            try:
                if protocol.matches(requests.get):
                    return protocol
            except NoStatus as error:
                if not error.answered:
                    raise
        if _loading(requests.answers()):
            return None
        raise _unknown_server(self.backend.address, requests)


class HttpLink:
    """A connection to one server: see `Link`."""

    def __init__(self, transport: HttpTransport, connection: ServerConnection) -> None:
        self._transport = transport
        self._connection = connection

    def request_status(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Read the status, with the metadata as headers."""
        requests = _Requests(self._connection, time.monotonic() + timeout_seconds, metadata)
        try:
            return self._transport.read(requests)
        except NoStatus as error:
            code = error.rpc_error
            pause = OTHER_PROTOCOL_PAUSE_SECONDS if code == "UNIMPLEMENTED" else 0.0
            # A gateway answers 502 to 504 for a server that does not answer yet.
            answered = code not in NO_ANSWER and bool(error.answered or requests.answers())
            return StatusOutcome(None, code, answered, "http", None, error.text, pause)

    def free(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Do nothing: see `can_free`."""
        return StatusOutcome(None, "UNIMPLEMENTED")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Fault(NamedTuple):
    """Why a request has no answer.

    The exception itself is not kept: with its traceback, it would keep itself and what was read of
    the body, often 4 MiB, until the garbage collector runs.
    """

    rpc_error: str
    text: str
    answered: bool

    def error(self) -> NoStatus:
        """Return the exception."""
        return NoStatus(self.rpc_error, self.text, answered=self.answered)


class _Requests:
    """The requests of one reading: each path is requested once."""

    def __init__(
        self, connection: ServerConnection, deadline: float, headers: Mapping[str, str]
    ) -> None:
        self._connection = connection
        self._deadline = deadline
        self._headers = headers
        self._results: dict[str, Answer | _Fault] = {}

    def get(self, path: str) -> Answer:
        """Request a path: see `protocol.Get`."""
        if path not in self._results:
            self._results[path] = self._request(path)
        result = self._results[path]
        if isinstance(result, Answer):
            return result
        raise result.error()

    def _request(self, path: str) -> Answer | _Fault:
        try:
            return self._connection.get(path, self._deadline, self._headers)
        except NoStatus as error:
            return _Fault(error.rpc_error, error.text, error.answered)

    def answers(self) -> list[Answer]:
        """List the answers so far."""
        return [each for each in self._results.values() if isinstance(each, Answer)]

    def faults(self) -> list[NoStatus]:
        """List the requests without an answer of a usable form."""
        results = self._results.values()
        return [each.error() for each in results if isinstance(each, _Fault)]


def _loading(answers: list[Answer]) -> Status | None:
    """Return the status of a server that answers 503 to everything; None if it does not."""
    is_loading = bool(answers) and all(is_failure(each, 503) for each in answers)
    return Status(State.UNINITIALIZED) if is_loading else None


def _unknown_server(address: str, requests: _Requests) -> NoStatus:
    """Return why no protocol is known: the clearest of the faults of the answers."""
    answers = [each for each in requests.answers() if each.status not in (404, 405, 501)]
    # What an operator can mend stands first: the token, then redirects and failing gateways.
    answers.sort(key=lambda each: (each.status not in (401, 403), each.status == 200))
    if faults := requests.faults():
        return faults[0]
    try:
        if answers and (answers[0].status != 200 or answers[0].content_type == "text/html"):
            answers[0].check("application/json")
        for answer in answers:
            if answer.path == "/v1/models":  # most servers have it, and it is JSON
                answer.json()
    except NoStatus as error:
        return error
    names = ", ".join(each.name for each in catalog.HTTP_PROTOCOLS)
    return NoStatus(
        "UNIMPLEMENTED",
        f"the server at {address} speaks HTTP, and none of the protocols {names}; if it has the "
        "API of one of them, name that one by the setting protocol",
    )
