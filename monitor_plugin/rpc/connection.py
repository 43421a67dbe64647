"""The gRPC connection to one backend: one channel, and at most one `Status` call in flight."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import grpc

from ..concurrency.blocking import BlockingObserver
from .call import StatusCall, StatusCaller, StatusOutcome, say
from .call_stats import StatusCounter, StatusCounts
from .protocol import FREE_METHOD

_logger = logging.getLogger(__name__)

# A call outlives its readers' patience by this long: while it is under way, a hung backend costs
# one call, and the moment that it answers again is known. Then it is renewed, in case it was lost.
_CALL_SECONDS = 30.0

# Codes with which the backend itself said nothing: one that hung still does, for all we know.
_NO_WORD = (grpc.StatusCode.DEADLINE_EXCEEDED.name, grpc.StatusCode.UNAVAILABLE.name)

# Whoever starts a call to a backend known to be hung waits this long, so that the first request
# after its recovery is answered by it; one that joins does not wait at all.
_HUNG_GRACE_SECONDS = 0.05

# While a channel is as young as this, a call may finish before it is closed: old versions of gRPC
# never let go of the descriptor of one that is closed while it connects (tried with 1.49).
_CONNECTING_SECONDS = 0.05


class _NoRoom(Exception):
    """No more channels may be opened."""


class Connection:
    """The connection to one backend, opened at its first use. Safe to call from any thread.

    Args:
        address: its gRPC target, for the log.
        dial: makes a channel to it, which connects at its first call.
        timeout_seconds: how long a `Status` call may keep its readers waiting; deadline of `Free`.
        call_metadata: gives the gRPC metadata to send with a call.
        make_room: whether one more channel may be opened; calls that need one it may not open get
            RESOURCE_EXHAUSTED.
        caller: makes the `Status` calls.
        waits: told of each wait for an answer.
    """

    def __init__(
        self,
        address: str,
        dial: Callable[[], grpc.Channel],
        timeout_seconds: float,
        call_metadata: Callable[[], Mapping[str, str]],
        make_room: Callable[[], bool],
        caller: StatusCaller,
        waits: BlockingObserver,
    ) -> None:
        self._address = address
        self._dial = dial
        self._timeout_seconds = timeout_seconds
        self._call_seconds = timeout_seconds + _CALL_SECONDS
        self._call_metadata = call_metadata
        self._make_room = make_room
        self._caller = caller
        self._waits = waits
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._channel_made_at = 0.0
        self._unreached = False
        self._call: StatusCall | None = None
        # While it does not answer: the code to tell those who do not wait any more.
        self._hung: str | None = None
        self._unimplemented = False
        self._frees = 0
        self._counter = StatusCounter()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether it has a channel, which holds a descriptor or two."""
        return self._channel is not None

    def counts(self) -> StatusCounts:
        """Give what was counted of the `Status` calls that have finished."""
        with self._lock:
            return self._counter.counts()

    def rest(self) -> bool:
        """Close the channel, unless a call is under way; the next call opens one anew.

        Returns:
            Whether it was closed.
        """
        return self._drop_channel(self._is_idle)

    def ask(self) -> Callable[[float], StatusOutcome]:
        """Ask for the status, or join the call under way: see `StatusClient.status`.

        Returns:
            What waits for the answer, so many seconds at most.
        """
        with self._lock:
            if self._closed:
                return partial(say, grpc.StatusCode.CANCELLED)
            if self._unimplemented:  # no method appears in a process that runs
                return partial(say, grpc.StatusCode.UNIMPLEMENTED)
            hung = self._hung is not None
            call = self._call
            starts = call is None
            if call is None:
                call = self._call = StatusCall()
        if starts:
            self._start(call)
        return partial(self._await, call, starts, hung)

    def _await(
        self, call: StatusCall, starts: bool, hung: bool, patience_seconds: float
    ) -> StatusOutcome:
        deadline = time.monotonic() + patience_seconds
        if hung:
            deadline = min(deadline, call.started + _HUNG_GRACE_SECONDS if starts else 0)
        self._wait(call, deadline)
        with self._lock:
            if call.answer is None:
                code = self._hung or grpc.StatusCode.DEADLINE_EXCEEDED.name
                if time.monotonic() >= call.started + self._timeout_seconds:
                    self._hung = code
                return StatusOutcome(None, code)
        return call.answer

    def _wait(self, call: StatusCall, deadline: float) -> None:
        if call.done.is_set():  # as most of a list's are: nobody is to be told of a wait
            return
        # In a loop, because the call's age counts from its sending, which may still lie ahead.
        with self._waits:
            while (
                left := min(deadline, call.started + self._timeout_seconds) - time.monotonic()
            ) > 0:
                if call.done.wait(left):
                    return

    def _start(self, call: StatusCall) -> None:
        try:
            metadata = tuple(self._call_metadata().items())
            channel = self._open_channel()
            call.started = time.monotonic()
            done = partial(self._on_done, call)
            self._caller.begin(channel, self._call_seconds, metadata, done)
        except _NoRoom:
            self._on_done(call, StatusOutcome(None, grpc.StatusCode.RESOURCE_EXHAUSTED.name))
        except Exception as error:
            self._on_done(call, error)

    def _on_done(self, call: StatusCall, outcome: StatusOutcome | Exception) -> None:
        """Record the outcome of a call, and wake its readers."""
        if isinstance(outcome, Exception) and self._closed:  # and so was the channel
            outcome = StatusOutcome(None, grpc.StatusCode.CANCELLED.name)
        if isinstance(outcome, Exception):
            # Readers wait for this call: whatever stands in its way must reach them as an answer.
            # The message may quote the metadata, a token say, and stays out of the log.
            name = type(outcome).__name__
            _logger.warning("calling Status at %s failed: %s", self._address, name)
            outcome = StatusOutcome(None, grpc.StatusCode.INTERNAL.name)
        self._finish(call, outcome)
        if (
            outcome.rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            and time.monotonic() - call.started > self._call_seconds / 2
        ):
            # Our own deadline: keep one call under way, or nobody would notice that it recovers.
            with self._lock:
                renewed = None if self._closed or self._call else StatusCall()
                self._call = self._call or renewed
            if renewed:
                self._start(renewed)
        call.done.set()

    def _finish(self, call: StatusCall, answer: StatusOutcome) -> None:
        seconds = time.monotonic() - call.started
        with self._lock:
            call.answer = answer
            self._counter.add(seconds, answer.rpc_error)
            if answer.rpc_error not in _NO_WORD:
                self._hung = None
            elif self._hung is not None:
                self._hung = answer.rpc_error
            self._unreached = answer.rpc_error == grpc.StatusCode.UNAVAILABLE.name
            self._unimplemented |= answer.rpc_error == grpc.StatusCode.UNIMPLEMENTED.name
            if self._call is call:
                self._call = None
        self._drop_channel(self._is_of_no_use)

    def free(self) -> str | None:
        """Ask the backend to free its model: see `StatusClient.free`."""
        deadline = time.monotonic() + self._timeout_seconds
        with self._lock:
            self._frees += 1
        try:
            metadata = tuple(self._call_metadata().items())  # which takes some of the time
            call = self._open_channel().unary_unary(FREE_METHOD, None, None)
            call(b"", timeout=max(0.0, deadline - time.monotonic()), metadata=metadata)
        except grpc.RpcError as error:
            with self._lock:
                self._unreached = error.code() is grpc.StatusCode.UNAVAILABLE
            return str(error.code().name)
        except _NoRoom:
            return grpc.StatusCode.RESOURCE_EXHAUSTED.name
        except Exception as error:  # as in _start: metadata that gRPC refuses, a closed channel
            _logger.warning("calling Free at %s failed: %s", self._address, type(error).__name__)
            return grpc.StatusCode.INTERNAL.name
        finally:
            with self._lock:
                self._frees -= 1
            self._drop_channel(self._is_of_no_use)
        return None

    def _open_channel(self) -> grpc.Channel:
        channel = self._channel
        if channel is not None:
            return channel
        if not self._make_room():
            raise _NoRoom
        made = self._dial()
        with self._lock:
            if self._channel is None and not self._closed:
                self._channel, self._channel_made_at = made, time.monotonic()
                self._unreached = False
            channel = self._channel
        if channel is not made:  # another call was first, or it was closed
            made.close()
        if channel is None:
            raise ValueError("the connection is closed")
        return channel

    def _is_idle(self) -> bool:
        return self._call is None and not self._frees

    def _is_of_no_use(self) -> bool:
        # There is nothing more to ask where Status is not implemented. Where nobody was reached,
        # gRPC's backoffs, of which the name resolver's is up to minutes, would hide a backend that
        # has come; and old versions (1.49) go on connecting by themselves, but not to the end, and
        # lose the descriptor of a unix socket so.
        return (self._unreached or self._unimplemented) and self._is_idle()

    def _drop_channel(self, may: Callable[[], bool] = lambda: True) -> bool:
        with self._lock:
            channel = self._channel if may() else None
            if channel:
                self._channel = None
        if channel:
            channel.close()
        return channel is not None

    def close(self) -> None:
        """Close the channel; calls under way and later ones get CANCELLED."""
        with self._lock:
            self._closed = True
            call, connects_until = self._call, self._channel_made_at + _CONNECTING_SECONDS
        if call:
            call.done.wait(max(0.0, connects_until - time.monotonic()))
        self._drop_channel()
