"""The policy of a shutdown: once at a time, with leave, all backends, and see that it stays so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from ..backends.counters import ModelCounter
from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import ModelNotLoaded, PidNotHeld, ShutdownFailed, ShutdownRefused
from ..domain.models import Backend
from ..plugins.hooks import Hooks
from ..telemetry.event_log import EventLog
from .stop import Stop, Stopper, pids_text

_LOOK_SECONDS = 0.1
_STOPS_AT_ONCE = 32

# A process, whatever it is registered as: its PID, and when it was created.
Started = tuple[int, float]


class Progress(NamedTuple):
    """How far a shutdown is.

    Attributes:
        phase: `asking` (hooks, for leave), `draining` (busy backends), `stopping`, or `watching`
            (whether the host starts it again).
        seconds: since it began.
    """

    phase: str
    seconds: float


class ShutdownCoordinator:
    """Stops models, one shutdown of a model at a time. Safe to call from any thread.

    Args:
        registry: where the backends stand.
        exit_recorder: records the exit of a backend whose process has ended.
        stopper: stops one of them.
        hooks: asked for leave, and told of the outcome.
        event_log: where it is written down how far each is.
        model_counter: counts how they ended.
        thread_pool: stops the backends of a model at the same time.
        respawn_watch_seconds: how long to see whether the host starts the model again.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        stopper: Stopper,
        hooks: Hooks,
        event_log: EventLog,
        model_counter: ModelCounter,
        thread_pool: ThreadPool,
        respawn_watch_seconds: float,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._stopper = stopper
        self._hooks = hooks
        self._event_log = event_log
        self._model_counter = model_counter
        self._thread_pool = thread_pool
        self._respawn_watch_seconds = respawn_watch_seconds
        self._lock = threading.Lock()
        self._under_way: dict[str, _Shutdown] = {}

    def shutdown(
        self, model: str, force: bool = False, pid: int | None = None, spare_busy: bool = False
    ) -> None:
        """Stop all backends of a model, or the one with a PID, or join the shutdown under way.

        Returns once their whole process trees are verified to be gone.

        Args:
            model: the model's name.
            force: do not wait for busy backends (ends the waiting of the one that is joined too),
                and overrule hooks that refuse by an error.
            pid: the one to stop; None for all.
            spare_busy: stop none that is busy still after the drain; who joins may overrule that.

        Raises:
            ModelNotLoaded: none is registered.
            PidNotHeld: the model does not hold that PID.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: processes are left, or the host started the model again.
        """
        while True:
            with self._lock:
                records = [
                    each
                    for each in self._registry.records(model)
                    if pid in (None, each.backend.pid)
                ]
                shutdown = self._under_way.get(model)
                leads = shutdown is None
                if shutdown is None:
                    shutdown = self._under_way[model] = _Shutdown(force, pid, records, spare_busy)
            joins = pid in (None, shutdown.pid)
            shutdown.spare_busy &= spare_busy or not joins
            if (force and joins) or self._stopper.closing.is_set():
                shutdown.hurry.set()
            if leads:
                self._lead(model, shutdown)
            elif not shutdown.covers(pid, records):  # what came since, or was not asked for there
                shutdown.result.exception()
                continue
            try:
                return shutdown.result.result()
            except ShutdownRefused:
                if shutdown.force or not force:
                    raise
                # It was refused to one that came without force: ask again, with it.
            except ShutdownFailed:
                if spare_busy or not shutdown.has_spared:
                    raise
                # It came too late to overrule that.

    def stopping(self) -> list[Backend]:
        """List the backends for which a shutdown is under way."""
        with self._lock:
            shutdowns = list(self._under_way.values())
        return [record.backend for shutdown in shutdowns for record in shutdown.records]

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown is under way that was asked for this backend alone, by its PID."""
        with self._lock:
            shutdown = self._under_way.get(backend.model)
        return shutdown is not None and shutdown.pid == backend.pid

    def progress(self) -> dict[Backend, Progress]:
        """Say how far each shutdown is that is under way, by the backends that it stops."""
        now = time.monotonic()
        with self._lock:
            shutdowns = list(self._under_way.values())
        return {
            record.backend: Progress(shutdown.phase, now - shutdown.began)
            for shutdown in shutdowns
            for record in shutdown.records
        }

    def _enter(self, shutdown: _Shutdown, phase: str) -> None:
        shutdown.phase = phase
        for record in shutdown.records:
            self._event_log.add("shutdown_phase", record.backend, phase=phase)

    def close(self) -> None:
        """End the waits of what is under way: it reports what is left, and nothing more is done."""
        self._stopper.closing.set()
        with self._lock:
            for shutdown in self._under_way.values():
                shutdown.hurry.set()

    def _lead(self, model: str, shutdown: _Shutdown) -> None:
        def finish() -> None:
            with self._lock:
                del self._under_way[model]

        try:
            self._run(model, shutdown)
        except BaseException as error:  # those who joined wait for it, whatever it is
            finish()
            shutdown.result.set_exception(error)
        else:
            finish()
            shutdown.result.set_result(None)

    def _run(self, model: str, shutdown: _Shutdown) -> None:
        records, known = self._live(model, shutdown)
        stops = [Stop(record) for record in records]
        started = time.monotonic()
        outcome = "failed"
        try:
            self._stop(model, stops, shutdown)
            outcome = "stopped"
            if not all(stop.by_host or stop.failure for stop in stops):
                self._enter(shutdown, "watching")
                outcome = self._watch_respawn(model, known)
        except ShutdownRefused:
            outcome = "refused"
            raise
        finally:
            for stop in stops:
                backend = stop.record.backend
                each = "failed" if stop.failure else outcome
                self._model_counter.shut_down(backend, each)
                self._hooks.shutdown_finished(backend, each, time.monotonic() - started)
        failures = [stop.failure for stop in stops if stop.failure]
        if failures:
            pids = [pid for failure in failures for pid in failure.pids]
            raise ShutdownFailed(model, "; ".join(failure.reason for failure in failures), pids)
        if outcome == "respawned":
            raise self._respawned(model, known)

    def _live(self, model: str, shutdown: _Shutdown) -> tuple[Sequence[Record], set[Started]]:
        """List which backends are to be stopped, and the processes that are no new ones."""
        records = []
        for record in shutdown.records:
            if record.process.ended():
                self._exit_recorder.end(record)
            else:
                records.append(record)
        known = shutdown.records if shutdown.pid is None else self._registry.records(model)
        if records:
            ended = [each.backend for each in self._registry.ends()]
            return records, {_started(each) for each in (*(r.backend for r in known), *ended)}
        if shutdown.pid is not None and known:
            raise PidNotHeld(model, shutdown.pid, [each.backend.pid for each in known])
        raise ModelNotLoaded(model, self._exit_recorder.describe_last_exit(model))

    def _stop(self, model: str, stops: Sequence[Stop], shutdown: _Shutdown) -> None:
        """Stop backends at the same time, with leave, none before all are drained."""
        try:
            self._enter(shutdown, "asking")
            # First: one that ends by itself from now on leaves none of its tree behind.
            self._for_each(stops, self._stopper.open)
            self._ask_leave(model, [stop.record for stop in stops], shutdown.force)
            self._enter(shutdown, "draining")
            self._for_each(stops, self._stopper.begin_drain(shutdown.hurry))
            if shutdown.spare_busy:
                for stop in stops:
                    if stop.is_busy:
                        shutdown.has_spared = True
                        stop.spare()
            self._enter(shutdown, "stopping")
            self._for_each(stops, self._stopper.stop)
        finally:
            for stop in stops:
                stop.resources.close()

    def _for_each(self, stops: Sequence[Stop], step: Callable[[Stop], None]) -> None:
        """Take a step of several stops at the same time; return once all have ended."""
        futures = self._thread_pool.map(step, stops, _STOPS_AT_ONCE)
        wait(futures)
        for future in futures:
            future.result()

    def _ask_leave(self, model: str, records: Sequence[Record], force: bool) -> None:
        for record in records:
            if refusal := self._hooks.before_shutdown(record.backend, force):
                raise ShutdownRefused(model, refusal.plugin_name, refusal.reason)

    def _watch_respawn(self, model: str, known: set[Started]) -> str:
        """See whether the host starts the model again: `respawned`, else `stopped`."""
        deadline = time.monotonic() + self._respawn_watch_seconds
        while True:
            if self._anew(model, known):
                return "respawned"
            left = deadline - time.monotonic()
            if left <= 0 or self._stopper.closing.wait(min(_LOOK_SECONDS, left)):
                return "stopped"

    def _anew(self, model: str, known: set[Started]) -> list[int]:
        """List the PIDs of a model's new processes, and of those that have crashed by now."""
        ended = [each.backend for each in self._registry.ends() if each.backend.model == model]
        found = (*ended, *(each.backend for each in self._registry.records(model)))
        return [each.pid for each in found if _started(each) not in known]

    def _respawned(self, model: str, known: set[Started]) -> ShutdownFailed:
        anew = self._anew(model, known)
        reason = (
            f"it was, but the host started it again ({pids_text(anew)}); a host that does so must "
            "implement the hook monitor_stop_backend, and take the model off its own books there"
        )
        running = {each.backend.pid for each in self._registry.records(model)}
        return ShutdownFailed(model, reason, [pid for pid in anew if pid in running])


def _started(backend: Backend) -> Started:
    return backend.pid, backend.created_at


class _Shutdown:
    """A shutdown under way: what those who join it share."""

    def __init__(
        self, force: bool, pid: int | None, records: Sequence[Record], spare_busy: bool
    ) -> None:
        self.force = force
        self.spare_busy = spare_busy
        self.has_spared = False
        self.pid = pid
        self.records = records
        self.hurry = threading.Event()
        self.phase = "asking"
        self.began = time.monotonic()
        self.result: Future[None] = Future()

    def covers(self, pid: int | None, records: Sequence[Record]) -> bool:
        """Whether it stops these, which are a model's now, or its one with that PID."""
        if pid is not None and not records:  # gone by now, or never there
            return any(each.backend.pid == pid for each in self.records)
        return all(each in self.records for each in records)
