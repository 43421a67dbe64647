"""Shutdowns of models: permitted by hooks, verified, and one at a time for each model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import NamedTuple

from ..backends.counters import ModelCounter
from ..backends.exits import ExitRecorder
from ..backends.left_behind import LeftBehindTracker
from ..backends.registry import Record, Registry
from ..concurrency.thread_pool import ThreadPool
from ..config.settings import Settings
from ..domain.errors import ModelNotLoaded, PidNotHeld, ShutdownFailed, ShutdownRefused
from ..domain.freed import add_freed
from ..domain.models import Backend, Freed
from ..plugins.hooks import Hooks
from ..telemetry.event_log import EventLog
from .stop import Stop, Stopper, format_pids

_logger = logging.getLogger(__name__)

_RESPAWN_POLL_SECONDS = 0.1
_MAX_CONCURRENT_STOPS = 32

# A registered process: its PID and its creation time.
_StartedProcess = tuple[int, float]


class Progress(NamedTuple):
    """The progress of a shutdown.

    Attributes:
        phase: `asking` (hooks may refuse), `draining` (busy backends), `stopping`, or `watching`
            (whether the host starts the model again).
        seconds: the time since the shutdown began.
    """

    phase: str
    seconds: float


class ShutdownCoordinator:
    """Stops models, with one shutdown of a model at a time. Safe to call from any thread.

    Args:
        registry: the registered backends.
        exit_recorder: records the exit of a backend whose process has ended.
        left_behind: knows the processes that backends of the model have left behind.
        stopper: stops one backend.
        hooks: may refuse a shutdown, and are called with the outcome.
        event_log: records the phases.
        model_counter: counts the outcomes.
        thread_pool: stops the backends of a model at the same time.
        unseen: what the monitor cannot see of other users' processes; None if it sees all.
        settings: how long to drain, and how long to watch whether the host starts a model again.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        left_behind: LeftBehindTracker,
        stopper: Stopper,
        hooks: Hooks,
        event_log: EventLog,
        model_counter: ModelCounter,
        thread_pool: ThreadPool,
        unseen: str | None,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._left_behind = left_behind
        self._stopper = stopper
        self._hooks = hooks
        self._event_log = event_log
        self._model_counter = model_counter
        self._thread_pool = thread_pool
        self._unseen = unseen
        self._drain_timeout_seconds = settings.drain_timeout_seconds
        self._respawn_watch_seconds = settings.respawn_watch_seconds
        self._lock = threading.Lock()
        self._shutdowns: dict[str, _Shutdown] = {}

    def shutdown(
        self, model: str, force: bool = False, pid: int | None = None, spare_busy: bool = False
    ) -> Freed:
        """Stop all backends of a model, or the one with a PID, or join the shutdown in progress.

        Also stops the processes that backends of the model have left behind. No host is asked for
        them, and a model that the host has started again meanwhile does not count as respawned.

        Returns once it is verified that their members have ended, that nothing serves their
        addresses, unless other registered backends do, and that their GPU memory is free: see
        `MemoryRelease`.

        Args:
            model: the model's name.
            force: do not wait for busy backends, also in a shutdown that is joined, and overrule
                hooks that refuse because of an error.
            pid: the PID of the backend to stop, which may have ended; None stops all.
            spare_busy: stop no backend that is busy after the drain. A caller that joins the
                shutdown with False overrules True.

        Returns:
            The memory that was given back, as the sum of the backends.

        Raises:
            ModelNotLoaded: the model has no backend, and none left a process behind.
            PidNotHeld: the model has no backend with that PID.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: processes are left, an address is still served, or the host started the
                model again.
        """
        while True:
            with self._lock:
                shutdown = self._shutdowns.get(model)
                leads = shutdown is None
                if shutdown is None:
                    records = self._registry.begin_shutdown(model, pid)
                    records = self._with_left_behind(records, model, pid)
                    shutdown = self._shutdowns[model] = _Shutdown(force, pid, records, spare_busy)
                else:
                    records = self._registry.records(model)
                    records = [each for each in records if pid in (None, each.backend.pid)]
                    records = self._with_left_behind(records, model, pid)
            joins = pid in (None, shutdown.pid)
            shutdown.spare_busy &= spare_busy or not joins
            if (force and joins) or self._stopper.closing.is_set():
                shutdown.skip_drain.set()
            if leads:
                self._run_to_result(model, shutdown)
            elif not shutdown.covers(pid, records):  # wait for its end, then try again
                shutdown.result.exception()
                continue
            try:
                return shutdown.result.result()
            except ShutdownRefused:
                if shutdown.force or not force:
                    raise
                # The refused shutdown was without force: try again with force.
            except ShutdownFailed:
                if spare_busy or not shutdown.has_spared:
                    raise
                # This call came too late to overrule `spare_busy`: try again.

    def _with_left_behind(
        self, registered: Sequence[Record], model: str, pid: int | None
    ) -> list[Record]:
        """Add the records of ended backends. Call this after the registered ones were listed."""
        return list(dict.fromkeys([*registered, *self._left_behind.records(model, pid)]))

    def skip_drain(self, model: str, pid: int | None = None) -> None:
        """End the drain of the model's shutdown in progress, if it stops the backend with the PID.

        Args:
            model: the model's name.
            pid: the PID of the backend; None for any.
        """
        with self._lock:
            shutdown = self._shutdowns.get(model)
            if shutdown is not None and pid in (None, shutdown.pid):
                shutdown.skip_drain.set()

    def stopping(self) -> list[Backend]:
        """List the backends that a shutdown is stopping."""
        return list(self.progress())

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown of this backend alone, by its PID, is in progress."""
        with self._lock:
            shutdown = self._shutdowns.get(backend.model)
        return shutdown is not None and shutdown.pid == backend.pid

    def progress(self) -> dict[Backend, Progress]:
        """Return the progress of each shutdown, by the backends that it stops."""
        with self._lock:
            shutdowns = list(self._shutdowns.values())
        now = time.monotonic()  # after each start, so that no duration is negative
        return {
            record.backend: Progress(shutdown.phase, now - shutdown.started_at)
            for shutdown in shutdowns
            for record in shutdown.records
        }

    def _set_phase(self, shutdown: _Shutdown, phase: str) -> None:
        shutdown.phase = phase
        for record in shutdown.records:
            self._event_log.add("shutdown_phase", record.backend, phase=phase)

    def close(self) -> None:
        """End the waits of all shutdowns: each fails with the processes that still run."""
        self._stopper.closing.set()
        with self._lock:
            for shutdown in self._shutdowns.values():
                shutdown.skip_drain.set()

    def _run_to_result(self, model: str, shutdown: _Shutdown) -> None:
        try:
            try:
                freed = self._run(model, shutdown)
            finally:
                self._registry.end_shutdown(shutdown.records)
                with self._lock:
                    del self._shutdowns[model]
        except (
            BaseException
        ) as error:  # of any kind, as the callers that joined wait for the result
            shutdown.result.set_exception(error)
        else:
            shutdown.result.set_result(freed)

    def _run(self, model: str, shutdown: _Shutdown) -> Freed:
        stops, known = self._make_stops(model, shutdown)
        # Without the ended backends that have left nothing behind.
        shutdown.records = [stop.record for stop in stops]
        started = time.monotonic()
        outcome = "failed"
        registered = [stop for stop in stops if not stop.is_left_behind]
        try:
            self._stop(model, stops, shutdown)
            outcome = "stopped"
            if not all(stop.by_host or stop.failure for stop in registered):
                self._set_phase(shutdown, "watching")
                ended_at = max(stop.ended_at for stop in registered)
                outcome = self._watch_respawn(model, known, ended_at)
            if outcome == "stopped":
                self._for_each(stops, self._stopper.verify)
        except ShutdownRefused:
            outcome = "refused"
            raise
        finally:
            self._left_behind.select_running([stop.record for stop in stops if stop.is_left_behind])
            deliveries = []
            for stop in stops:
                backend, seconds = stop.record.backend, time.monotonic() - started
                backend_outcome = "failed" if stop.failure else outcome
                if stop.is_left_behind and backend_outcome == "respawned":
                    backend_outcome = "stopped"
                self._model_counter.count_shutdown(backend, backend_outcome)
                delivery = self._hooks.shutdown_finished(
                    backend, backend_outcome, seconds, stop.freed
                )
                deliveries.append(delivery)
            self._hooks.wait(deliveries)
        failures = [stop.failure for stop in stops if stop.failure]
        if failures:
            pids = [pid for failure in failures for pid in failure.pids]
            raise ShutdownFailed(model, "; ".join(failure.reason for failure in failures), pids)
        if outcome == "respawned":
            raise self._respawn_error(model, known)
        if self._unseen:
            _logger.warning("the stop of model %r is verified in part: %s", model, self._unseen)
        return add_freed([stop.freed or Freed() for stop in stops])

    def _make_stops(
        self, model: str, shutdown: _Shutdown
    ) -> tuple[Sequence[Stop], set[_StartedProcess]]:
        """List the stops to make, and the processes that do not count as a respawn.

        Raises:
            PidNotHeld: the model no longer has a backend with the PID of the shutdown.
            ModelNotLoaded: the model no longer has a backend.
        """
        stops: list[Stop] = []
        ended: list[Record] = []
        for record in shutdown.records:
            if not record.process.ended():
                stops.append(Stop(record))
                continue
            self._exit_recorder.record_exit(record)
            ended.append(record)
        stops += [
            Stop(each, is_left_behind=True) for each in self._left_behind.select_running(ended)
        ]
        known = shutdown.records if shutdown.pid is None else self._registry.records(model)
        if stops:
            exits = [each.backend for each in self._registry.last_exits()]
            return stops, {_identity(each) for each in (*(r.backend for r in known), *exits)}
        if shutdown.pid is not None and known:
            raise PidNotHeld(model, shutdown.pid, [each.backend.pid for each in known])
        raise ModelNotLoaded(model, self._exit_recorder.describe_last_exit(model))

    def _stop(self, model: str, stops: Sequence[Stop], shutdown: _Shutdown) -> None:
        """Ask hooks for permission, drain all backends, then stop all of them."""
        try:
            self._set_phase(shutdown, "asking")
            # Before the hooks: if a backend ends during the hooks, its tree is already known.
            self._for_each(stops, self._stopper.open)
            self._ask_permission(model, [stop.record for stop in stops], shutdown.force)
            self._set_phase(shutdown, "draining")
            deadline = time.monotonic() + self._drain_timeout_seconds
            self._for_each(
                stops, lambda stop: self._stopper.drain(stop, deadline, shutdown.skip_drain)
            )
            if shutdown.spare_busy:
                for stop in stops:
                    if stop.is_busy:
                        shutdown.has_spared = True
                        stop.spare()
            self._set_phase(shutdown, "stopping")
            self._for_each(stops, self._stopper.stop)
        finally:
            for stop in stops:
                stop.resources.close()

    def _for_each(self, stops: Sequence[Stop], step: Callable[[Stop], None]) -> None:
        """Call a step with all stops concurrently, and wait for all calls."""
        try:
            futures = self._thread_pool.map(step, stops, _MAX_CONCURRENT_STOPS)
        except RuntimeError:  # no thread can be started: stop one by one
            for stop in stops:
                step(stop)
            return
        wait(futures)
        for future in futures:
            future.result()

    def _ask_permission(self, model: str, records: Sequence[Record], force: bool) -> None:
        for record in records:
            if refusal := self._hooks.before_shutdown(record.backend, force):
                raise ShutdownRefused(model, refusal.plugin_name, refusal.reason)

    def _watch_respawn(self, model: str, known: set[_StartedProcess], ended_at: float) -> str:
        """Watch whether the host starts the model again; return `respawned` or `stopped`.

        Args:
            model: the model.
            known: the processes that do not count as a respawn.
            ended_at: when the last backend ended (monotonic seconds). The time of the watch begins
                then, so it includes the wait for GPU memory.
        """
        deadline = ended_at + self._respawn_watch_seconds
        while True:
            if self._new_pids(model, known):
                return "respawned"
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._stopper.closing.wait(min(_RESPAWN_POLL_SECONDS, remaining)):
                return "stopped"

    def _new_pids(self, model: str, known: set[_StartedProcess]) -> list[int]:
        """List the PIDs of a model's new processes, also of those that have already ended."""
        ended = [
            each.backend for each in self._registry.last_exits() if each.backend.model == model
        ]
        found = (*ended, *(each.backend for each in self._registry.records(model)))
        return [each.pid for each in found if _identity(each) not in known]

    def _respawn_error(self, model: str, known: set[_StartedProcess]) -> ShutdownFailed:
        pids = self._new_pids(model, known)
        reason = (
            f"it was, but the host started it again ({format_pids(pids)}); a host that does so "
            "must implement the hook monitor_stop_backend, and take the model off its own books "
            "there"
        )
        running = {each.backend.pid for each in self._registry.records(model)}
        return ShutdownFailed(model, reason, [pid for pid in pids if pid in running])


def _identity(backend: Backend) -> _StartedProcess:
    return backend.pid, backend.created_at


@dataclass(eq=False)
class _Shutdown:
    """A shutdown in progress, shared by its callers.

    Attributes:
        force: do not drain, and overrule hooks that refuse because of an error.
        pid: the PID of the only backend to stop; None stops all.
        records: the records of the backends to stop.
        spare_busy: stop no backend that is busy after the drain.
        has_spared: whether a busy backend was spared.
        skip_drain: ends the drain when it is set.
        phase: see `Progress`.
        started_at: the start, by the monotonic clock.
        result: the memory that was given back, or the error of the shutdown.
    """

    force: bool
    pid: int | None
    records: Sequence[Record]
    spare_busy: bool
    has_spared: bool = False
    skip_drain: threading.Event = field(default_factory=threading.Event)
    phase: str = "asking"
    started_at: float = field(default_factory=time.monotonic)
    result: Future[Freed] = field(default_factory=Future)

    def covers(self, pid: int | None, records: Sequence[Record]) -> bool:
        """Whether this shutdown stops all that another caller wants to stop.

        Args:
            pid: the PID of the backend that the caller wants to stop; None for all.
            records: the model's current records; if `pid` is given, those with that PID.
        """
        if pid is not None and not records:  # the backend has ended, or never existed
            return any(each.backend.pid == pid for each in self.records)
        return all(each in self.records for each in records)
