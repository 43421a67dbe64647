"""The connection to one backend: at most one link, and one `Status` call in flight."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import grpc

from ..concurrency.blocking import BlockingObserver
from ..concurrency.thread_pool import ThreadPool
from ..domain.models import Backend
from .call import NO_ANSWER, StatusCall, StatusCounter, StatusCounts, StatusOutcome
from .channel_limit import ChannelLimit
from .transport import Link, Transport

_logger = logging.getLogger(__name__)

# A call lasts this much longer than its readers wait. So a hung backend costs one call, and its
# recovery is seen immediately. At its deadline a new call replaces it, in case it was lost.
_EXTRA_CALL_SECONDS = 30.0

# A call by HTTP ends sooner. A server that ends answers its last requests first, and llama.cpp's
# server never answers one that comes while it ends: a reading at that moment delayed its end by
# 31 s. Most hosts kill a server that takes 10 s.
_EXTRA_HTTP_CALL_SECONDS = 4.0

# A reader that starts a call to a hung backend waits this long, so that the first reading after the
# backend's recovery shows the recovery. A reader that joins such a call does not wait.
_HUNG_GRACE_SECONDS = 0.05

# A channel younger than this may still be connecting, so `close` waits for its call. gRPC 1.49
# never closes the descriptor of a channel that is closed while it connects.
_CONNECTING_SECONDS = 0.05


_LATE = StatusOutcome(
    None,
    grpc.StatusCode.DEADLINE_EXCEEDED.name,
    error_text="the server has not answered in time; it may be busy or stuck",
)


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

    Each `Status` call runs on a thread of a pool: gRPC's own futures start a thread for each call,
    which takes 750 µs of CPU time instead of 450 to 520.

    Args:
        backend: the backend, for the log.
        choose_transport: returns how the backend is asked; is called at the first use.
        channel_limit: limits the number of links of all connections.
        timeout_seconds: how long readers wait for a `Status` call; deadline of `Free`.
        call_metadata: returns the metadata for a call; it may call slow hooks.
        threads: the pool.
        blocking: is entered while a reader waits for a call.
    """

    def __init__(
        self,
        backend: Backend,
        choose_transport: Callable[[], Transport],
        channel_limit: ChannelLimit[Connection],
        timeout_seconds: float,
        call_metadata: Callable[[], Mapping[str, str]],
        threads: ThreadPool,
        blocking: BlockingObserver,
    ) -> None:
        self._backend = backend
        self._choose_transport = choose_transport
        self._channel_limit = channel_limit
        self._timeout_seconds = timeout_seconds
        self._call_metadata = call_metadata
        self._threads = threads
        self._blocking = blocking
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._link: Link | None = None
        self._link_opened_at = 0.0
        self._is_unreachable = False
        self._call: StatusCall | None = None
        self._hung: StatusOutcome | None = None  # readers get this while the backend hangs
        self._unimplemented: StatusOutcome | None = None  # the answer, which is final
        self._paused_until = 0.0  # no calls before; readers get the outcome below
        self._paused: StatusOutcome | None = None
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
            if self._unimplemented:  # a running process gains no methods
                return self._failed_request(self._unimplemented)
            if self._paused and time.monotonic() < self._paused_until:
                return self._failed_request(self._paused)
            call = self._call
            is_new = call is None
            if call is None:
                call = self._call = StatusCall()
            if self._hung is not None:
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
            outcome = self._hung or _LATE
            # A reader's deadline may be a little before that of the call.
            if time.monotonic() >= call.sent_at + self._timeout_seconds - _HUNG_GRACE_SECONDS:
                self._hung = outcome
            if not call.is_counted and outcome.rpc_error:
                call.is_counted = True
                self._counter.add_failure(outcome.rpc_error)
            return outcome

    def _start(self, call: StatusCall) -> None:
        def request() -> None:
            outcome: StatusOutcome | Exception
            try:
                metadata = self._call_metadata()
                call.sent_at = time.monotonic()
                outcome = link.request_status(self._max_call_seconds(), metadata)
            except Exception as error:  # the call's readers must get an outcome
                outcome = error
            self._finish(call, outcome)

        try:
            link = self._get_link()
            self._threads.run(request)
        except ChannelLimitReached:
            self._finish(call, StatusOutcome(None, grpc.StatusCode.RESOURCE_EXHAUSTED.name))
        except Exception as error:
            self._finish(call, error)

    def _max_call_seconds(self) -> float:
        is_http = self._transport is not None and self._transport.source == "http"
        extra_seconds = _EXTRA_HTTP_CALL_SECONDS if is_http else _EXTRA_CALL_SECONDS
        return self._timeout_seconds + extra_seconds

    def _finish(self, call: StatusCall, outcome: StatusOutcome | Exception) -> None:
        """Record the outcome of a call, and wake its readers."""
        if isinstance(outcome, Exception):
            outcome = StatusOutcome(None, self._error_code(outcome, "Status"))
        if outcome.pause_seconds:
            self._pause(outcome)
        seconds = time.monotonic() - call.sent_at
        reached_deadline = (
            outcome.rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            # Otherwise the backend has answered with this code.
            and seconds > self._max_call_seconds() / 2
        )
        with self._lock:
            call.outcome = outcome
            self._counter.add(seconds, None if call.is_counted else outcome.rpc_error)
            if outcome.rpc_error not in NO_ANSWER:
                self._hung = None
            elif self._hung is not None:
                self._hung = outcome._replace(answered=False)
            if outcome.status is not None and self._refused_method == "Status":
                self._refused_method = None
            self._is_unreachable = outcome.rpc_error == grpc.StatusCode.UNAVAILABLE.name
            is_unimplemented = outcome.rpc_error == grpc.StatusCode.UNIMPLEMENTED.name
            if is_unimplemented and not outcome.pause_seconds:
                self._unimplemented = outcome
            # A call that reached its deadline is replaced, so that the backend's recovery is seen.
            next_call = StatusCall() if reached_deadline and not self._closed else None
            self._call = next_call
        self._close_useless_link()
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
            if self._paused and time.monotonic() < self._paused_until:
                return self._paused.rpc_error
            self._frees_in_flight += 1
        try:
            if not self._get_transport().can_free:
                return grpc.StatusCode.UNIMPLEMENTED.name
            metadata = self._call_metadata()  # hooks may take some of the time
            link, seconds = self._get_link(), deadline - time.monotonic()
            outcome = link.free(max(0.0, seconds), metadata)
        except ChannelLimitReached:
            return grpc.StatusCode.RESOURCE_EXHAUSTED.name
        except Exception as error:
            return self._error_code(error, "Free")
        else:
            with self._lock:
                self._is_unreachable = outcome.rpc_error == grpc.StatusCode.UNAVAILABLE.name
            if outcome.pause_seconds:
                self._pause(outcome)
            if outcome.rpc_error == grpc.StatusCode.UNAUTHENTICATED.name:
                self.log_refusal("Free")
            return outcome.rpc_error
        finally:
            with self._lock:
                self._frees_in_flight -= 1
            self._close_useless_link()

    def _pause(self, outcome: StatusOutcome) -> None:
        """Make no calls for a time, as the server speaks another protocol; log that once."""
        with self._lock:
            self._paused_until = time.monotonic() + outcome.pause_seconds
            is_logged, self._paused = self._paused is not None, outcome
        if not is_logged:
            text = (
                "model %r (process %d): %s; the monitor reads the process instead, and calls the "
                "server once in %g s"
            )
            backend, why = self._backend, outcome.error_text
            _logger.warning(text, backend.model, backend.pid, why, outcome.pause_seconds)

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

    def _get_transport(self) -> Transport:
        if self._transport is None:
            chosen = self._choose_transport()  # without the lock, as it reads files
            with self._lock:
                self._transport = self._transport or chosen
        return self._transport

    def _get_link(self) -> Link:
        link = self._link
        if link is not None:
            self._channel_limit.used(self)
            return link
        transport = self._get_transport()
        if not self._channel_limit.make_room():
            raise ChannelLimitReached
        opened = transport.open()
        with self._lock:
            if self._link is None and not self._closed:
                self._link, self._link_opened_at = opened, time.monotonic()
                self._channel_limit.opened(self)
                self._is_unreachable = False
            link = self._link
        if link is not opened:  # another thread opened one first, or the connection was closed
            opened.close()
        if link is None:
            raise ValueError("the connection is closed")
        return link

    def close_if_idle(self) -> None:
        """Close the link unless a call is in flight; the next call opens a new one."""
        with self._lock:
            link = self._take_link() if self._is_idle() else None
        if link:
            link.close()

    def _close_useless_link(self) -> None:
        # A backend that does not implement Status is not called again. An unreachable backend's
        # channel would delay the next attempt: gRPC's backoff for name resolution lasts minutes.
        # gRPC 1.49 also goes on connecting without end, and leaks the descriptor of a unix socket.
        with self._lock:
            useless = (self._is_unreachable or self._unimplemented) and self._is_idle()
            link = self._take_link() if useless else None
        if link:
            link.close()

    def _is_idle(self) -> bool:
        return self._call is None and not self._frees_in_flight

    def _take_link(self) -> Link | None:
        """Take the link to close it; the caller must have acquired the lock."""
        link, self._link = self._link, None
        self._channel_limit.closed(self)
        return link

    def close(self) -> None:
        """Close the link; calls in flight and later ones get CANCELLED."""
        with self._lock:
            self._closed = True
            call, connects_until = self._call, self._link_opened_at + _CONNECTING_SECONDS
        if call:
            call.done.wait(max(0.0, connects_until - time.monotonic()))
        with self._lock:
            link = self._take_link()
        if link:
            link.close()
