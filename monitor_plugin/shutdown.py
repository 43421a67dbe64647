"""The policy of a shutdown: ask the hooks, drain, free, stop, verify, and see that it stays so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grpc

from .errors import ModelNotLoaded, ShutdownFailed, ShutdownRefused
from .hooks import Hooks
from .lifecycle import Lifecycle
from .models import State
from .process import Process, ProcessGone
from .process_tree import ProcessTree
from .readings import Readings
from .registry import Record, Registry
from .settings import Settings
from .status_client import StatusClient

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_STOPS_AT_ONCE = 32


class Shutdowns:
    """Stops models, one shutdown of a model at a time. Safe to call from any thread.

    Args:
        registry: where the backends stand.
        lifecycle: told of those that have ended.
        readings: asks whether they are busy.
        status_client: asks them to free what they hold.
        hooks: asked for leave, and to stop them.
        settings: the timeouts.
    """

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        readings: Readings,
        status_client: StatusClient,
        hooks: Hooks,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._readings = readings
        self._status_client = status_client
        self._hooks = hooks
        self._settings = settings
        self._lock = threading.Lock()
        self._under_way: dict[str, _Shutdown] = {}
        self._closing = threading.Event()

    def shutdown(self, model: str, force: bool = False) -> None:
        """Stop all backends of a model, or join the shutdown of it that is under way.

        Returns once their whole process trees are verified to be gone.

        Args:
            model: the model's name.
            force: do not wait for busy backends (ends the waiting of the one that is joined too),
                and overrule hooks that refuse by an error.

        Raises:
            ModelNotLoaded: none is registered.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: processes are left, or the host started the model again.
        """
        while True:
            with self._lock:
                shutdown = self._under_way.get(model)
                leads = shutdown is None
                if shutdown is None:
                    shutdown = self._under_way[model] = _Shutdown(force)
            if force or self._closing.is_set():
                shutdown.hurry.set()
            if leads:
                self._lead(model, shutdown)
            try:
                return shutdown.result.result()
            except ShutdownRefused:
                if shutdown.force or not force:
                    raise
                # It was refused to one that came without force: ask again, with it.

    def close(self) -> None:
        """End the waits of what is under way: it reports what is left, and nothing more is done."""
        self._closing.set()
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
        records = []
        for record in self._registry.records(model):
            if record.process.ended():
                self._lifecycle.end(record)
            else:
                records.append(record)
        if not records:
            raise ModelNotLoaded(model, self._lifecycle.describe_last_end(model))
        stops = [_Stop(record) for record in records]
        started = time.monotonic()
        outcome = "failed"
        try:
            self._ask_leave(model, records, shutdown.force)
            with ThreadPoolExecutor(min(len(stops), _STOPS_AT_ONCE), "monitor-stop") as pool:
                list(pool.map(lambda stop: self._stop(stop, shutdown), stops))
            outcome = "stopped"
            if not all(stop.by_host or stop.failure for stop in stops):
                outcome = self._watch_respawn(model, records)
        except ShutdownRefused:
            outcome = "refused"
            raise
        finally:
            for stop in stops:
                self._hooks.shutdown_finished(
                    stop.record.backend,
                    "failed" if stop.failure else outcome,
                    time.monotonic() - started,
                )
        failures = [stop.failure for stop in stops if stop.failure]
        if failures:
            pids = [pid for failure in failures for pid in failure.pids]
            raise ShutdownFailed(model, "; ".join(failure.reason for failure in failures), pids)
        if outcome == "respawned":
            raise self._respawned(model, records)

    def _ask_leave(self, model: str, records: Sequence[Record], force: bool) -> None:
        for record in records:
            if refusal := self._hooks.before_shutdown(record.backend, force):
                raise ShutdownRefused(model, refusal.plugin_name, refusal.reason)

    def _stop(self, stop: _Stop, shutdown: _Shutdown) -> None:
        """Stop one backend; what went wrong is noted in `stop`."""
        record = stop.record
        try:
            root = Process(record.backend.pid)
        except ProcessGone:
            self._lifecycle.end(record)
            return
        with root:
            if record.process.ended():  # and `root` is another process with its PID
                self._lifecycle.end(record)
                return
            with ProcessTree(root) as tree:
                self._drain(record, shutdown.hurry)
                self._registry.set_stopping(record, True)
                try:
                    self._end_tree(stop, tree)
                finally:
                    if root.ended():
                        self._lifecycle.end(record)
                    else:
                        self._registry.set_stopping(record, False)

    def _drain(self, record: Record, hurry: threading.Event) -> None:
        """Wait while the backend is busy, or was and does not answer, at most the drain's time."""
        deadline = time.monotonic() + self._settings.drain_timeout_seconds
        while not hurry.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                status, _, rpc_error = self._readings.ask(record, left)
            except ProcessGone:
                return
            deaf = rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            if record.state is not State.BUSY or (status is None and not deaf):
                return
            hurry.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))

    def _end_tree(self, stop: _Stop, tree: ProcessTree) -> None:
        """Free and end a backend's tree, by the host's books or by signals."""
        backend, seconds = stop.record.backend, self._settings.stop_timeout_seconds
        if self._closing.is_set():
            stop.fail("the monitor was closed while it waited; nothing was signalled", tree)
            return
        if error := self._status_client.free(backend):
            _logger.debug("Free of model %r (process %d): %s", backend.model, backend.pid, error)
        tree.settle()
        answer = self._hooks.stop_backend(backend, seconds)
        if answer is None:
            tree.stop(seconds, self._closing)
            why = f"by SIGTERM, and {seconds:g} s later by SIGKILL"
        elif answer.under_way:
            stop.by_host = True
            tree.wait_ended(seconds, self._closing)
            why = answer.error or f"and {seconds:g} s later it was still running"
            why = f"by plugin {answer.plugin_name!r}, {why}; nothing was signalled"
        else:
            stop.fail(f"plugin {answer.plugin_name!r} says that it could not stop it", tree)
            return
        if tree.alive():
            closed = "; the monitor was closed meanwhile" if self._closing.is_set() else ""
            stop.fail(f"it was stopped {why}{closed}", tree)

    def _watch_respawn(self, model: str, records: Sequence[Record]) -> str:
        """See whether the host starts the model again: `respawned`, else `stopped`."""
        deadline = time.monotonic() + self._settings.respawn_watch_seconds
        while True:
            if any(record not in records for record in self._registry.records(model)):
                return "respawned"
            left = deadline - time.monotonic()
            if left <= 0 or self._closing.wait(min(_LOOK_SECONDS, left)):
                return "stopped"

    def _respawned(self, model: str, records: Sequence[Record]) -> ShutdownFailed:
        anew = [each.backend.pid for each in self._registry.records(model) if each not in records]
        reason = (
            f"it was, but the host started it again ({_pids(anew)}); a host that does so must "
            "implement the hook monitor_stop_backend, and take the model off its own books there"
        )
        return ShutdownFailed(model, reason, anew)


class _Shutdown:
    """A shutdown under way: what those who join it share."""

    def __init__(self, force: bool) -> None:
        self.force = force
        self.hurry = threading.Event()
        self.result: Future[None] = Future()


class _Stop:
    """The stop of one backend: how it was done, and what went wrong."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.by_host = False
        self.failure: ShutdownFailed | None = None

    def fail(self, reason: str, tree: ProcessTree) -> None:
        left = [member.pid for member in tree.alive()]
        if left:
            reason = f"{reason}; still running: {_pids(left)}"
        self.failure = ShutdownFailed(self.record.backend.model, reason, left)


def _pids(pids: Sequence[int]) -> str:
    return f"PID{'s' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
