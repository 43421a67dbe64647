"""The stop of one backend: drain it, free it, end its process tree, and verify the end."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import grpc

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.periodic import PeriodicTask
from ..config.settings import Settings
from ..domain.errors import ShutdownFailed
from ..domain.exits import signal_name
from ..domain.models import Freed, State
from ..plugins.hooks import Hooks
from ..processes.members import MemberTable
from ..processes.process import ProcessGone
from ..processes.process_tree import ProcessTree
from ..readings.address_check import AddressCheck
from ..readings.backend_reader import BackendReader
from ..rpc.client import StatusClient
from .address_verifier import AddressVerifier
from .memory_release import MemoryRelease

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_REFRESH_SECONDS = 0.5
_RESCAN_SECONDS = 0.1  # between two scans of the tree while a hook stops the backend


@dataclass(eq=False)
class Stop:
    """The stop of a backend: its progress and its result.

    Attributes:
        record: the backend's record.
        is_left_behind: whether the backend has ended before, and may have left processes behind.
        resources: closes the process handles at the end.
        tree: the backend's process tree; None before `Stopper.open`, and if that has failed.
        is_busy: whether the backend was busy after the drain, or may be, as its status is unknown.
        by_host: whether the host stops the backend, through a hook.
        grace_ends_at: when the time of the stop is over, by the monotonic clock.
        ended_at: when the members had ended, by the monotonic clock.
        failure: why the stop failed; None if it has not failed.
        freed: the memory that was given back; None unless all members have ended.
    """

    record: Record
    is_left_behind: bool = False
    resources: ExitStack = field(default_factory=ExitStack)
    tree: ProcessTree | None = None
    is_busy: bool = False
    by_host: bool = False
    grace_ends_at: float = 0.0
    ended_at: float = 0.0
    failure: ShutdownFailed | None = None
    freed: Freed | None = None

    def fail(self, reason: str, tree: ProcessTree) -> None:
        """Set the failure: the reason, and the processes that still run."""
        pids = [member.pid for member in tree.alive()]
        if pids:
            reason = f"{reason}; still running: {format_pids(pids)}"
        self.failure = ShutdownFailed(self.record.backend.model, reason, pids)

    def spare(self) -> None:
        """Fail without stopping the backend, as it may be busy."""
        if self.tree and not self.failure:
            self.fail("it may be busy, and was to be spared then", self.tree)


class Stopper:
    """Stops backends. Safe to call from any thread.

    Args:
        registry: records which backends are being stopped.
        exit_recorder: records the exit of a backend whose process has ended.
        backend_reader: requests statuses, which say whether a backend is busy.
        address_check: tells whether a member serves a backend's address.
        status_client: requests that a backend frees its model (`Free`).
        member_table: finds the members of backends.
        address_verifier: verifies that nothing serves the address of a stopped backend.
        memory_release: measures the memory of a backend, and waits until it is free.
        hooks: may stop a backend through the host.
        settings: the timeouts.

    Attributes:
        closing: when this event is set, waits end, and no further signals are sent.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        backend_reader: BackendReader,
        address_check: AddressCheck,
        status_client: StatusClient,
        member_table: MemberTable,
        address_verifier: AddressVerifier,
        memory_release: MemoryRelease,
        hooks: Hooks,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._backend_reader = backend_reader
        self._address_check = address_check
        self._status_client = status_client
        self._member_table = member_table
        self._address_verifier = address_verifier
        self._memory_release = memory_release
        self._hooks = hooks
        self._settings = settings
        self.closing = threading.Event()

    def open(self, stop: Stop) -> None:
        """Open the members of the backend."""
        record = stop.record
        with self._recording_failure(stop):
            if record.process.ended() and not stop.is_left_behind:  # since the shutdown began
                self._exit_recorder.record_exit(record)
                stop.is_left_behind = True
            tree = ProcessTree(record.members, self._member_table)
            stop.tree = stop.resources.enter_context(tree)

    @contextmanager
    def _recording_failure(self, stop: Stop) -> Iterator[None]:
        backend = stop.record.backend
        try:
            yield
        except ProcessGone:
            self._exit_recorder.record_exit(stop.record)
        except OSError as error:  # for example, no free file descriptor
            reason = f"its processes cannot be looked at: {error}"
            pids = [] if stop.is_left_behind else [backend.pid]
            stop.failure = ShutdownFailed(backend.model, reason, pids)

    def drain(self, stop: Stop, deadline: float, skip: threading.Event) -> None:
        """Wait while the backend is busy, or was busy and does not answer; set `stop.is_busy`.

        A backend is busy if it is BUSY, or requests are running or waiting.

        Args:
            stop: the stop of the backend.
            deadline: when to stop waiting, by the monotonic clock.
            skip: ends the wait when it is set.
        """
        if stop.is_left_behind:
            return
        with self._recording_failure(stop):
            stop.is_busy = self._is_busy_after_drain(stop, deadline, skip)

    def _is_busy_after_drain(self, stop: Stop, deadline: float, skip: threading.Event) -> bool:
        record, refresh_at = stop.record, time.monotonic() + _REFRESH_SECONDS
        # Without a drain, a status that was not requested does not mean busy.
        was_requested = self._settings.drain_timeout_seconds <= 0
        while not skip.is_set() and (remaining := deadline - time.monotonic()) > 0:
            if stop.tree and time.monotonic() >= refresh_at:
                # If the backend crashes, only known children can be stopped: find new ones now.
                _try_rescan(stop.tree)
                refresh_at = time.monotonic() + _REFRESH_SECONDS
            result = self._backend_reader.status(record, remaining)
            was_requested = True
            timed_out = result.rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            if not _has_requests(record) or (result.status is None and not timed_out):
                # Assume busy after a timeout, or if a backend that was busy does not answer now.
                return timed_out or _has_requests(record)
            skip.wait(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        return _has_requests(record) or not (was_requested or skip.is_set())

    def stop(self, stop: Stop) -> None:
        """Free and end the backend, and wait until its memory is free.

        Sets `stop.by_host`, `stop.ended_at`, `stop.failure` and `stop.freed`.
        """
        if stop.tree is None or stop.failure:
            return
        held = self._memory_release.measure(stop.record.members, stop.record.tree_memory)
        stop.grace_ends_at = time.monotonic() + self._settings.stop_timeout_seconds
        with self._recording_failure(stop):
            self._registry.set_stopping(stop.record, True)
            try:
                self._end_tree(stop, stop.tree)
            finally:
                if stop.record.process.ended():
                    self._exit_recorder.record_exit(stop.record)
                self._registry.set_stopping(stop.record, False)
        stop.ended_at = time.monotonic()
        if not stop.failure:
            stop.freed = self._memory_release.wait(
                stop.record.backend, held, stop.tree.identities(), stop.ended_at, self.closing
            )

    def verify(self, stop: Stop) -> None:
        """Verify that nothing serves the address of a stopped backend; set `stop.failure`.

        Waits until the end of the grace, and at least one second: see `AddressVerifier.verify`.
        """
        if stop.failure:
            return
        try:
            stop.failure = self._address_verifier.verify(
                stop.record, stop.grace_ends_at, self.closing
            )
        except OSError as error:  # for example, no free file descriptor
            backend = stop.record.backend
            reason = f"its processes have ended, but {backend.address} cannot be checked: {error}"
            stop.failure = ShutdownFailed(backend.model, reason)

    def _end_tree(self, stop: Stop, tree: ProcessTree) -> None:
        """Free a backend and end its process tree, through the host or by signals."""
        backend, seconds = stop.record.backend, self._settings.stop_timeout_seconds
        answer = None
        is_registered = not stop.is_left_behind
        if is_registered and not self.closing.is_set() and (error := self._free(stop.record)):
            _logger.debug("Free of model %r (process %d): %s", backend.model, backend.pid, error)
        may_stop = is_registered and self._hooks.may_stop_backend()
        if may_stop and not self.closing.is_set():
            tree.rescan_until_stable()
            # If the host ends the backend, only known children can be stopped: find new ones now.
            rescans = PeriodicTask("monitor-rescan", _RESCAN_SECONDS, lambda: _try_rescan(tree))
            with suppress(RuntimeError):  # no thread is left: the tree is scanned after the hook
                rescans.start()
            try:
                answer = self._hooks.stop_backend(backend, seconds)
            finally:
                rescans.close()
        if answer is None:
            if self.closing.is_set():
                stop.fail("the monitor was closed while it waited; nothing was signalled", tree)
                return
            sent = tree.stop(
                seconds,
                self.closing,
                self._hooks.stop_signal(backend),
                root_first=self._settings.stop_signal_target == "root",
            )
            why = describe_signals(sent, seconds)
        elif answer.under_way:
            stop.by_host = True
            tree.wait_ended(seconds, self.closing)
            why = answer.error or f"and {seconds:g} s later it was still running"
            why = f"by plugin {answer.plugin_name!r}, {why}; nothing was signalled"
        else:
            why = answer.error or "says that it could not stop it"
            stop.fail(f"plugin {answer.plugin_name!r}: {why}", tree)
            return
        if tree.alive():
            closed = "; the monitor was closed meanwhile" if self.closing.is_set() else ""
            subject = "its processes were" if stop.is_left_behind else "it was"
            stop.fail(f"{subject} stopped {why}{closed}", tree)

    def _free(self, record: Record) -> str | None:
        """Ask a backend to free its model, unless another process serves its address.

        Returns:
            None on success, else the name of the gRPC code.
        """
        if self._address_check.check_now(record).address_owner is not None:
            return grpc.StatusCode.UNAVAILABLE.name
        return self._status_client.free(record.backend)


def _has_requests(record: Record) -> bool:
    """Whether a backend is BUSY or has requests, by its last status."""
    return record.state is State.BUSY or record.has_requests


def _try_rescan(tree: ProcessTree) -> None:
    with suppress(OSError):  # no free descriptor: the next scan may succeed
        tree.rescan()


def describe_signals(sent: Sequence[int], grace_seconds: float) -> str:
    """Return the text for the signals of a stop: `by SIGTERM, and 10 s later by SIGKILL`."""
    first = " and ".join(signal_name(each) for each in sent if each != signal.SIGKILL)
    if not sent:
        return "by nothing: it may not be signalled"
    if signal.SIGKILL not in sent:
        return f"by {first}"
    return f"by {first}, and {grace_seconds:g} s later by SIGKILL" if first else "by SIGKILL"


def format_pids(pids: Sequence[int]) -> str:
    """Return the text for a list of PIDs: `PID 5`, or `PIDs 5, 6`."""
    return f"PID{'s' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
