"""The connection to one backend: at most one channel, and one `Status` call in flight."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import grpc

from ..concurrency.blocking import BlockingObserver
from ..domain.models import Backend
from .call import (
    NO_ANSWER,
    NOT_GRPC,
    StatusCall,
    StatusCaller,
    StatusCounter,
    StatusCounts,
    StatusOutcome,
    speaks_grpc,
)
from .channel_limit import ChannelLimit
from .protocol import FREE_METHOD

_logger = logging.getLogger(__name__)

# A call lasts this much longer than its readers wait. So a hung backend costs one call, and its
# recovery is seen immediately. At its deadline a new call replaces it, in case it was lost.
_EXTRA_CALL_SECONDS = 30.0

# A server that does not speak gRPC logs an error for each call, so the next call waits this long.
NOT_GRPC_PAUSE_SECONDS = 60.0

# A reader that starts a call to a hung backend waits this long, so that the first reading after the
# backend's recovery shows the recovery. A reader that joins such a call does not wait.
_HUNG_GRACE_SECONDS = 0.05

# A channel younger than this may still be connecting, so `close` waits for its call. gRPC 1.49
# never closes the descriptor of a channel that is closed while it connects.
_CONNECTING_SECONDS = 0.05


class ChannelLimitReached(Exception):
    """No more channels may be opened, because each channel takes file descriptors."""


class StatusRequest(NamedTuple):
    """One reader's request for a status. Several requests may share one call.

    Attributes:
        connection: the connection to the backend.
        call: the call.
        max_call_age_seconds: the age of the call up to which the reader waits.
    """

    connection: Connection
    call: StatusCall
    max_call_age_seconds: float

    def wait(self, timeout_seconds: float = math.inf) -> StatusOutcome:
        """Wait for the outcome, at most `timeout_seconds`.

        Returns:
            DEADLINE_EXCEEDED if there is no outcome in time; of a hung backend the last failure.
        """
        return self.connection.wait_for(self, timeout_seconds)


class Connection:
    """The connection to one backend, opened at its first use. Safe to call from any thread.

    Args:
        backend: the backend, for the log.
        open_channel: opens a channel to the backend; may raise ValueError.
        channel_limit: limits the number of channels of all connections.
        timeout_seconds: how long readers wait for a `Status` call; deadline of `Free`.
        call_metadata: returns the gRPC metadata for a call.
        caller: makes the `Status` calls.
        blocking: is entered while a reader waits for a call.
    """

    def __init__(
        self,
        backend: Backend,
        open_channel: Callable[[], grpc.Channel],
        channel_limit: ChannelLimit[Connection],
        timeout_seconds: float,
        call_metadata: Callable[[], Mapping[str, str]],
        caller: StatusCaller,
        blocking: BlockingObserver,
    ) -> None:
        self._backend = backend
        self._open_channel = open_channel
        self._channel_limit = channel_limit
        self._timeout_seconds = timeout_seconds
        self._call_seconds = timeout_seconds + _EXTRA_CALL_SECONDS
        self._call_metadata = call_metadata
        self._caller = caller
        self._blocking = blocking
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._channel_opened_at = 0.0
        self._is_unreachable = False
        self._call: StatusCall | None = None
        self._hung_code: str | None = None  # readers get this code while the backend hangs
        self._is_unimplemented = False
        self._paused_until = 0.0  # no calls before, as the server does not speak gRPC
        self._other_protocol_logged = False
        self._refused_method: str | None = None  # the method whose refusal was logged
        self._frees_in_flight = 0
        self._counter = StatusCounter()
        self._closed = False

    def counts(self) -> StatusCounts:
        """Return the counts of the `Status` calls that have finished."""
        with self._lock:
            return self._counter.counts()

    def request_status(self) -> StatusRequest:
        """Start a `Status` call, or join the one in flight: see `StatusClient.request_status`."""
        max_call_age_seconds = self._timeout_seconds
        with self._lock:
            if self._closed:
                return self._failed_request(StatusOutcome(None, grpc.StatusCode.CANCELLED.name))
            if self._is_unimplemented:  # a running process gains no methods
                code = grpc.StatusCode.UNIMPLEMENTED.name
                return self._failed_request(StatusOutcome(None, code, answered=True))
            if time.monotonic() < self._paused_until:
                return self._failed_request(NOT_GRPC)
            call = self._call
            is_new = call is None
            if call is None:
                call = self._call = StatusCall()
            if self._hung_code is not None:
                grace = _HUNG_GRACE_SECONDS if is_new else 0.0
                max_call_age_seconds = min(max_call_age_seconds, grace)
        if is_new:
            self._start(call)
        return StatusRequest(self, call, max_call_age_seconds)

    def _failed_request(self, outcome: StatusOutcome) -> StatusRequest:
        return StatusRequest(self, StatusCall(outcome), 0.0)

    def wait_for(self, request: StatusRequest, timeout_seconds: float) -> StatusOutcome:
        """Wait for the outcome of a request: see `StatusRequest.wait`."""
        _, call, max_age_seconds = request
        deadline = time.monotonic() + timeout_seconds
        if not call.done.is_set():
            with self._blocking:
                # The loop is needed because another thread may just be sending the call, which
                # changes `sent_at`.
                while (
                    left := min(deadline, call.sent_at + max_age_seconds) - time.monotonic()
                ) > 0:
                    if call.done.wait(left):
                        break
        with self._lock:
            if call.outcome is not None:
                return call.outcome
            code = self._hung_code or grpc.StatusCode.DEADLINE_EXCEEDED.name
            # A reader's deadline may be a little before that of the call.
            if time.monotonic() >= call.sent_at + self._timeout_seconds - _HUNG_GRACE_SECONDS:
                self._hung_code = code
            if not call.is_counted:
                call.is_counted = True
                self._counter.add_failure(code)
            return StatusOutcome(None, code)

    def _start(self, call: StatusCall) -> None:
        def get_metadata() -> tuple[tuple[str, str], ...]:
            metadata = tuple(self._call_metadata().items())
            call.sent_at = time.monotonic()
            return metadata

        try:
            channel, on_outcome = self._get_channel(), partial(self._finish, call)
            self._caller.start(channel, self._call_seconds, get_metadata, on_outcome)
        except ChannelLimitReached:
            self._finish(call, StatusOutcome(None, grpc.StatusCode.RESOURCE_EXHAUSTED.name))
        except Exception as error:
            self._finish(call, error)

    def _finish(self, call: StatusCall, outcome: StatusOutcome | Exception) -> None:
        """Record the outcome of a call, and wake its readers."""
        if isinstance(outcome, Exception):
            outcome = StatusOutcome(None, self._error_code(outcome, "Status"))
        if not outcome.speaks_grpc:
            self._pause()
        seconds = time.monotonic() - call.sent_at
        reached_deadline = (
            outcome.rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            and seconds > self._call_seconds / 2  # otherwise the backend answered with this code
        )
        with self._lock:
            call.outcome = outcome
            self._counter.add(seconds, None if call.is_counted else outcome.rpc_error)
            if outcome.rpc_error not in NO_ANSWER:
                self._hung_code = None
            elif self._hung_code is not None:
                self._hung_code = outcome.rpc_error
            if outcome.status is not None and self._refused_method == "Status":
                self._refused_method = None
            self._is_unreachable = outcome.rpc_error == grpc.StatusCode.UNAVAILABLE.name
            self._is_unimplemented |= outcome.rpc_error == grpc.StatusCode.UNIMPLEMENTED.name
            # A call that reached its deadline is replaced, so that the backend's recovery is seen.
            next_call = StatusCall() if reached_deadline and not self._closed else None
            self._call = next_call
        self._close_useless_channel()
        if outcome.rpc_error == grpc.StatusCode.UNAUTHENTICATED.name:
            self.log_refusal("Status")
        call.done.set()
        if next_call:
            self._start(next_call)

    def free(self) -> str | None:
        """Ask the backend to free its model: see `StatusClient.free`."""
        deadline = time.monotonic() + self._timeout_seconds
        with self._lock:
            if self._closed:
                return grpc.StatusCode.CANCELLED.name
            if time.monotonic() < self._paused_until:
                return NOT_GRPC.rpc_error
            self._frees_in_flight += 1
        try:
            metadata = tuple(self._call_metadata().items())  # hooks may take some of the time
            method = self._get_channel().unary_unary(FREE_METHOD, None, None)
            method(b"", timeout=max(0.0, deadline - time.monotonic()), metadata=metadata)
        except grpc.RpcError as error:
            code = str(error.code().name)
            with self._lock:
                self._is_unreachable = code == grpc.StatusCode.UNAVAILABLE.name
            if not speaks_grpc(error):
                self._pause()
            if code == grpc.StatusCode.UNAUTHENTICATED.name:
                self.log_refusal("Free")
            return code
        except ChannelLimitReached:
            return grpc.StatusCode.RESOURCE_EXHAUSTED.name
        except Exception as error:
            return self._error_code(error, "Free")
        finally:
            with self._lock:
                self._frees_in_flight -= 1
            self._close_useless_channel()
        return None

    def _pause(self) -> None:
        """Make no calls for a time, as the server does not speak gRPC; log that once."""
        with self._lock:
            self._paused_until = time.monotonic() + NOT_GRPC_PAUSE_SECONDS
            is_logged, self._other_protocol_logged = self._other_protocol_logged, True
        if not is_logged:
            text = (
                "model %r (process %d): the server at %s does not speak gRPC; the monitor reads "
                "the process instead, and calls the server once in %g s; if the backend serves "
                "gRPC at another address, register that one"
            )
            backend, seconds = self._backend, NOT_GRPC_PAUSE_SECONDS
            _logger.warning(text, backend.model, backend.pid, backend.address, seconds)

    def log_refusal(self, method: str) -> None:
        """Log that the backend answered a call with UNAUTHENTICATED.

        The refusal is logged once for all methods. A refusal of `Status` is logged again if the
        backend has answered `Status` meanwhile.
        """
        with self._lock:
            is_logged = self._refused_method is not None
            self._refused_method = self._refused_method or method
        if not is_logged:
            text = (
                "model %r (process %d) refused the call of %s (UNAUTHENTICATED): the call carries "
                "no token, or not the backend's; put the backend's token into the file of the "
                "setting grpc_token_file, or return it from the hook monitor_call_metadata"
            )
            _logger.warning(text, self._backend.model, self._backend.pid, method)

    def _error_code(self, error: Exception, method: str) -> str:
        """Return the name of the code for an exception that prevented a call; log its type only.

        The message of the exception is not logged, because it may quote metadata with tokens.
        """
        if self._closed:  # gRPC raises ValueError for a closed channel
            return grpc.StatusCode.CANCELLED.name
        address, error_type = self._backend.address, type(error).__name__
        _logger.warning("calling %s at %s failed: %s", method, address, error_type)
        return grpc.StatusCode.INTERNAL.name

    def _get_channel(self) -> grpc.Channel:
        channel = self._channel
        if channel is not None:
            self._channel_limit.used(self)
            return channel
        if not self._channel_limit.make_room():
            raise ChannelLimitReached
        opened = self._open_channel()
        with self._lock:
            if self._channel is None and not self._closed:
                self._channel, self._channel_opened_at = opened, time.monotonic()
                self._channel_limit.opened(self)
                self._is_unreachable = False
            channel = self._channel
        if channel is not opened:  # another thread opened one first, or the connection was closed
            opened.close()
        if channel is None:
            raise ValueError("the connection is closed")
        return channel

    def close_if_idle(self) -> None:
        """Close the channel unless a call is in flight; the next call opens a new one."""
        with self._lock:
            channel = self._take_channel() if self._is_idle() else None
        if channel:
            channel.close()

    def _close_useless_channel(self) -> None:
        # A backend that does not implement Status is not called again. An unreachable backend's
        # channel would delay the next attempt: gRPC's backoff for name resolution lasts minutes.
        # gRPC 1.49 also goes on connecting without end, and leaks the descriptor of a unix socket.
        with self._lock:
            useless = (self._is_unreachable or self._is_unimplemented) and self._is_idle()
            channel = self._take_channel() if useless else None
        if channel:
            channel.close()

    def _is_idle(self) -> bool:
        return self._call is None and not self._frees_in_flight

    def _take_channel(self) -> grpc.Channel | None:
        """Take the channel to close it; the caller must have acquired the lock."""
        channel, self._channel = self._channel, None
        self._channel_limit.closed(self)
        return channel

    def close(self) -> None:
        """Close the channel; calls in flight and later ones get CANCELLED."""
        with self._lock:
            self._closed = True
            call, connects_until = self._call, self._channel_opened_at + _CONNECTING_SECONDS
        if call:
            call.done.wait(max(0.0, connects_until - time.monotonic()))
        with self._lock:
            channel = self._take_channel()
        if channel:
            channel.close()
