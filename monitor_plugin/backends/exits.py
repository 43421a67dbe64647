"""The exits of backends: how they are noticed, recorded and reported."""

from __future__ import annotations

import time

from ..concurrency.periodic import PeriodicTask
from ..domain.exits import describe_exit_and_age, make_exit
from ..plugins.event_queue import Delivery
from ..plugins.hooks import Hooks
from ..processes.exit_watcher import ExitWatcher
from ..processes.process import Process, ProcessGone
from ..processes.sampler import BASELINE_INTERVAL_SECONDS
from ..rpc.client import StatusClient
from .counters import ModelCounter
from .registry import NotRegistered, Record, Registry


class ExitRecorder:
    """Removes backends from the registry when their process ends. Safe to call from any thread.

    Args:
        registry: the registered backends.
        status_client: closes its channel to a backend that has ended.
        hooks: called for each exit.
        model_counter: counts the exits.

    Attributes:
        watcher: notices the end of the processes that it is given.
    """

    def __init__(
        self,
        registry: Registry,
        status_client: StatusClient,
        hooks: Hooks,
        model_counter: ModelCounter,
    ) -> None:
        self._registry = registry
        self._status_client = status_client
        self._hooks = hooks
        self._model_counter = model_counter
        self.watcher = ExitWatcher(self._on_exit)
        self._baselines = PeriodicTask(
            "monitor-ticker", BASELINE_INTERVAL_SECONDS, self._record_baselines
        )

    def start(self) -> None:
        """Start to notice exits, and to record the baselines that CPU use is measured from."""
        self.watcher.start()
        self._baselines.start()

    def close(self) -> None:
        """Stop noticing exits."""
        self._baselines.close()
        self.watcher.close()

    def end(self, record: Record, exit_code: int | None = None) -> None:
        """Record and report the exit of a backend whose process has ended, once.

        Returns when the hooks have been called, or have had their time.

        Args:
            record: the backend's record.
            exit_code: the exit code that the host reported; None finds it out.
        """
        self._hooks.wait(self._end(record, exit_code))

    def complete(self, model: str, pid: int, exit_code: int | None) -> None:
        """Add the exit code that a host reported to the newest exit of a PID, if it lacks one."""
        for end in reversed(self._registry.ends()):
            if (end.backend.model, end.backend.pid) == (model, pid):
                exit = end.exit
                if exit.exit_code is None and exit.signal is None and exit_code is not None:
                    stopped = exit.cause == "shutdown"
                    completed = make_exit(exit_code, stopped, end.oom_kill_seen, exit.ended_at)
                    self._registry.replace_end(end, end._replace(exit=completed))
                return

    def release(self, record: Record) -> None:
        """Close the channel to a backend that is no longer registered, and its process handle."""
        self._status_client.close_connection(record.backend)
        self.watcher.unwatch(record.process)
        record.process.close()

    def describe_last_exit(self, model: str) -> str | None:
        """Describe the newest exit of a model's backends; None if no exit of it is remembered."""
        for end in reversed(self._registry.ends()):
            if end.backend.model == model:
                return (
                    f"its process {end.backend.pid} {describe_exit_and_age(end.exit, time.time())}"
                )
        return None

    def _on_exit(self, process: Process) -> None:
        record = self._registry.record(process.pid)
        if record and record.process is process:
            self._end(record, None)  # does not wait for hooks, as other processes end meanwhile

    def _end(self, record: Record, exit_code: int | None) -> Delivery | None:
        if exit_code is None:
            exit_code = record.process.exit_code()
        oom_kill_seen = record.oom.has_risen() and not any(
            other is not record and other.oom.path == record.oom.path
            for other in self._registry.records()
        )
        exit = make_exit(exit_code, record.stopping, oom_kill_seen, time.time())
        try:
            delivery = self._registry.end(
                record,
                exit,
                oom_kill_seen,
                lambda: self._hooks.backend_gone(record.backend, exit),
            )
        except NotRegistered:  # another thread recorded the exit
            self._status_client.close_connection(
                record.backend
            )  # a late call may have connected again
            return None
        self.release(record)
        self._model_counter.ended(record.backend, exit)
        return delivery

    def _record_baselines(self) -> None:
        for record in self._registry.records():
            try:
                record.sampler.record_baseline()
                record.oom.update()
            except ProcessGone:
                self._end(record, None)
