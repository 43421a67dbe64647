"""The status of servers that speak the Open Inference Protocol v2: Triton, KServe, TorchServe.

Asks a backend for `ServerReady`, then for `ModelReady`, as the monitor would for `Status`: READY
where both say so, else UNINITIALIZED (a model that is not there is not ready). BUSY is not known to
the protocol. A backend that does not speak it is asked once in its life, and then left to the other
hooks and to gRPC `Status`; so is one that cannot be reached, or does not answer in time.

To enable: put this file into the folder that the setting `hooks_dir` names.

MONITOR_HOOK_KSERVE_STATUS_MODELS: pattern of the names of the models that are asked (*).
MONITOR_HOOK_KSERVE_STATUS_ASK_FOR: name of the model to ask for (the backend's model).
MONITOR_HOOK_KSERVE_STATUS_SERVICE: name of the gRPC service (inference.GRPCInferenceService;
TorchServe's is org.pytorch.serve.grpc.openinference.GRPCInferenceService).
"""

from __future__ import annotations

import fnmatch
import math
import os
import threading
import time

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from monitor_plugin import Backend, BackendExit, Monitor, State, Status, hookimpl

MODELS = os.environ.get("MONITOR_HOOK_KSERVE_STATUS_MODELS", "*")
ASK_FOR = os.environ.get("MONITOR_HOOK_KSERVE_STATUS_ASK_FOR", "")
SERVICE = os.environ.get("MONITOR_HOOK_KSERVE_STATUS_SERVICE", "inference.GRPCInferenceService")
PAUSE_SECONDS = 2.0  # for which a server that did not answer in time is left alone

_monitors: list[Monitor] = []
_servers: dict[tuple[int, float], Server] = {}  # by PID and creation time


class Server:
    """One backend's server. One reading asks it at a time; the others get the same answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._turn = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._answer: Status | None = None
        self._answered_at = self._ask_after = -math.inf

    def status(self, backend: Backend, seconds: float) -> Status | None:
        """Ask, unless that is of no use, or give what was answered meanwhile."""
        came_at = time.monotonic()
        if came_at < self._ask_after or not self._turn.acquire(timeout=seconds):
            return None
        try:
            if self._answered_at < came_at:
                self._answer = self._ask(backend, came_at + seconds)
                self._answered_at = time.monotonic()
            return self._answer
        finally:
            self._turn.release()

    def _ask(self, backend: Backend, deadline: float) -> Status | None:
        # The messages have one field, or one that matters, and so the wire form of these wrappers.
        name = StringValue(value=ASK_FOR or backend.model).SerializeToString()
        try:
            ready = all(
                BoolValue.FromString(self._call(backend, method, request, deadline)).value
                for method, request in (("ServerReady", b""), ("ModelReady", name))
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.close()
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._ask_after = time.monotonic() + PAUSE_SECONDS
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                return None
            ready = False
        except (DecodeError, ValueError):  # ValueError: the channel was closed meanwhile
            return None
        return Status(State.READY if ready else State.UNINITIALIZED)

    def _call(self, backend: Backend, method: str, request: bytes, deadline: float) -> bytes:
        if self._channel is None:
            self._channel = _monitors[-1].open_channel(backend)
            if self._ask_after == math.inf:  # closed just before
                self._channel.close()
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", None, None)
        metadata = tuple(_monitors[-1].call_metadata(backend).items())
        answer: bytes = call(request, timeout=deadline - time.monotonic(), metadata=metadata)
        return answer

    def close(self) -> None:
        """Let go of the server, and do not ask it any more."""
        self._ask_after = math.inf
        if self._channel:
            self._channel.close()


@hookimpl
def monitor_started(monitor: Monitor) -> None:
    """Keep the monitor, which opens the channels."""
    _monitors.append(monitor)


@hookimpl
def monitor_backend_registered(backend: Backend) -> None:
    """Note a backend, or its new address."""
    key = backend.pid, backend.created_at
    known = _servers.get(key)
    if known and known.address != backend.address:
        known.close()
    if not known or known.address != backend.address:
        _servers[key] = Server(backend.address)


@hookimpl
def monitor_query_status(backend: Backend, timeout_seconds: float) -> Status | None:
    """Ask a backend's server, within nine tenths of the time."""
    server = _servers.get((backend.pid, backend.created_at))
    if server is None or not _monitors or not fnmatch.fnmatchcase(backend.model, MODELS):
        return None
    return server.status(backend, 0.9 * timeout_seconds)


@hookimpl
def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None:
    """Close the channel of a backend that has ended."""
    server = _servers.pop((backend.pid, backend.created_at), None)
    if server:
        server.close()


@hookimpl
def monitor_closing() -> None:
    """Close all channels."""
    for server in list(_servers.values()):
        server.close()
