"""Asks backends for their status by gRPC: by LocalAI's protocol, or by another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import grpc
from google.protobuf.message import DecodeError

from ..domain.address import http_url
from ..domain.models import Backend, Status
from .call import NO_ANSWER, StatusOutcome
from .protocol import FREE_METHOD, STATUS_METHOD, load_messages, status_from_wire
from .transport import OTHER_PROTOCOL_PAUSE_SECONDS, OpenChannel

LOCALAI = "localai"

#: Calls a method by its path, `/package.Service/Method`, with an encoded request. Returns the
#: encoded response, and raises grpc.RpcError.
Call = Callable[[str, bytes], bytes]
#: Requests the status of a model by a `Call`; None if the server does not know its state. May raise
#: grpc.RpcError, and DecodeError for a malformed response.
AskByGrpc = Callable[[str, Call], "Status | None"]

# What the details of the error contain, from gRPC 1.49.1 to 1.85.3, if the server sent something
# else than HTTP/2. The code is then always UNAVAILABLE.
_NOT_HTTP2 = "Failed parsing HTTP/2"
# The same, if it sent HTTP/1. `http.server` of Python answers HTML without a head: of `<!DOCTYPE`,
# newer versions of gRPC take the O (79) for the type of a frame.
_HTTP1 = ("Trying to connect an http1.x server", "got frame type 79)")


def speaks_grpc(error: grpc.RpcError) -> bool:
    """Return False if a call failed because the server sent something that is not gRPC.

    A server that sends nothing may still be starting, so that it counts as one that speaks gRPC.
    """
    details = error.details() or ""
    is_unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
    return not (is_unavailable and any(each in details for each in (_NOT_HTTP2, *_HTTP1)))


def failed_outcome(error: grpc.RpcError, address: str) -> StatusOutcome:
    """Return the outcome of a call that failed."""
    code = error.code().name
    if speaks_grpc(error):
        return StatusOutcome(None, code, code not in NO_ANSWER)
    details, url = error.details() or "", http_url(address)
    text = f"the server at {address} does not speak gRPC"
    if any(each in details for each in _HTTP1):
        register = f"register {url}" if url else "let it listen on TCP, and register its URL"
        text = f"the server at {address} speaks HTTP, not gRPC: {register}"
    return StatusOutcome(None, code, error_text=text, pause_seconds=OTHER_PROTOCOL_PAUSE_SECONDS)


class LocalAi:
    """LocalAI's protocol."""

    def __init__(self) -> None:
        self._response_class = load_messages()["StatusResponse"]

    def ask(self, model: str, call: Call) -> Status:
        """Call `Status`: see `AskByGrpc`."""
        response = call(STATUS_METHOD, b"")
        try:
            return status_from_wire(self._response_class.FromString(response))
        except ValueError:  # some versions raise it for invalid UTF-8
            raise DecodeError from None


class GrpcTransport:
    """Asks one backend by gRPC.

    Args:
        backend: the backend.
        open_channel: opens a channel to it.
        protocol: the name of the protocol.
        ask: requests a status by that protocol.
    """

    source = "grpc"

    def __init__(
        self, backend: Backend, open_channel: OpenChannel, protocol: str, ask: AskByGrpc
    ) -> None:
        self._backend = backend
        self._open_channel = open_channel
        self._protocol = protocol
        self._ask = ask
        self.can_free = protocol == LOCALAI

    def open(self) -> GrpcLink:
        """Open a channel: see `Transport.open`."""
        return GrpcLink(self._open_channel(self._backend), self._backend, self._protocol, self._ask)


class GrpcLink:
    """A channel to one backend: see `Link`."""

    def __init__(
        self, channel: grpc.Channel, backend: Backend, protocol: str, ask: AskByGrpc
    ) -> None:
        self._channel = channel
        self._backend = backend
        self._protocol = protocol
        self._ask = ask

    def request_status(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Call the methods of the protocol."""
        deadline = time.monotonic() + timeout_seconds
        items = tuple(metadata.items())

        def call(path: str, request: bytes) -> bytes:
            method = self._channel.unary_unary(path, None, None)
            left = max(0.0, deadline - time.monotonic())
            response: bytes = method(request, timeout=left, metadata=items)
            return response

        try:
            status = self._ask(self._backend.model, call)
        except grpc.RpcError as error:
            return failed_outcome(error, self._backend.address)
        except DecodeError:
            return StatusOutcome(None, grpc.StatusCode.INTERNAL.name, True)
        if status is None:
            text = "the server does not know the state of the model"
            return StatusOutcome(None, grpc.StatusCode.UNKNOWN.name, True, error_text=text)
        return StatusOutcome(status, None, True, protocol=self._protocol)

    def free(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Call `Free`."""
        method = self._channel.unary_unary(FREE_METHOD, None, None)
        try:
            method(b"", timeout=timeout_seconds, metadata=tuple(metadata.items()))
        except grpc.RpcError as error:
            return failed_outcome(error, self._backend.address)
        return StatusOutcome(None, None, True)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
