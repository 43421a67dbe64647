"""Notices, records and reports the exits of backends."""

from __future__ import annotations

import logging
import time
from functools import partial

from ..concurrency.closing import close_all
from ..concurrency.periodic import PeriodicTask
from ..domain.exits import complete_by_host, describe_exit_and_age, make_exit
from ..plugins.hooks import Hooks
from ..processes.exit_watcher import ExitWatcher
from ..processes.member_ends import MemberEndFinder
from ..processes.process import Process, ProcessGone
from ..processes.sampler import BASELINE_INTERVAL_SECONDS
from ..processes.usage import UsageReader
from ..rpc.client import StatusClient
from .counters import ModelCounter
from .left_behind import LeftBehindTracker
from .registry import EndedBackend, NotRegistered, Record, Registry

_logger = logging.getLogger(__name__)

# A launcher redirects its output soon after its start, if at all. So the files of older backends
# are looked at in each fifth tick only: that saves a tenth of the CPU time of an idle monitor.
_YOUNG_SECONDS = 10.0
_TICKS_BETWEEN_LOOKS = 5


class ExitRecorder:
    """Removes backends from the registry when their process ends. Safe to call from any thread.

    Args:
        registry: the registered backends.
        status_client: closes its channel to a backend that has ended.
        hooks: called for each exit.
        model_counter: counts the exits.
        usage_reader: records the baselines of process trees.
        left_behind: finds the members that still run after an exit.

    Attributes:
        watcher: notices when a watched process ends.
    """

    def __init__(
        self,
        registry: Registry,
        status_client: StatusClient,
        hooks: Hooks,
        model_counter: ModelCounter,
        usage_reader: UsageReader,
        left_behind: LeftBehindTracker,
    ) -> None:
        self._registry = registry
        self._status_client = status_client
        self._hooks = hooks
        self._model_counter = model_counter
        self._usage_reader = usage_reader
        self._left_behind = left_behind
        self._member_ends = MemberEndFinder()
        self.watcher = ExitWatcher(self._on_exit)
        self._baselines = PeriodicTask(
            "monitor-ticker", BASELINE_INTERVAL_SECONDS, self._record_baselines
        )
        self._ticks = 0

    def start(self) -> None:
        """Start to notice exits, and to record the baselines that CPU use is measured from."""
        self.watcher.start()
        self._baselines.start()

    def close(self) -> None:
        """Stop noticing exits."""
        close_all(self._baselines.close, self.watcher.close)

    def record_exit(self, record: Record, exit_code: int | None = None) -> None:
        """Record and report the exit of a backend whose process has ended. Later calls do nothing.

        The hooks are called later, on other threads.

        Args:
            record: the backend's record.
            exit_code: the exit code that the host reported; None reads the code from the process.
        """
        if exit_code is None:
            exit_code = record.process.exit_code()
        since, kills = record.oom.updated_at, record.oom.new_kills()
        oom_certain = self._has_own_group(record) if kills else None
        unexplained = self._unexplained(kills, record, since)
        exit = make_exit(exit_code, record.stopping, oom_certain, time.time(), record.peak_rss())

        def publish(ended: EndedBackend) -> None:
            if unexplained:
                self._hooks.oom_kill(ended.backend, unexplained, oom_certain is True)
            self._hooks.backend_gone(ended.backend, exit, ended.id)
            self._left_behind.add(record, ended)

        try:
            self._registry.move_to_exits(record, exit, oom_certain, publish)
        except NotRegistered:  # another thread recorded the exit
            # A late call may have connected again.
            self._status_client.close_connection(record.backend)
            return
        if record.output:
            record.output.mark_ended()
        self._release_process(record)
        may_explain = self._hooks.may_explain_exit()
        self._model_counter.count_exit(record.backend, exit, may_be_explained=may_explain)

    def add_exit_code(self, model: str, pid: int, exit_code: int | None) -> None:
        """Add the code that a host reported to the newest exit of a PID, if none is known."""
        if exit_code is None:
            return
        for ended in reversed(self._registry.last_exits()):
            if (ended.backend.model, ended.backend.pid) == (model, pid):
                self._registry.complete_exit(
                    ended.backend, partial(_with_exit_code, exit_code=exit_code)
                )
                return

    def release(self, record: Record) -> None:
        """Release what a record without an exit holds: members, channel, process and output."""
        self._left_behind.forget(record.members)
        if record.output:
            record.output.close()
        self._release_process(record)

    def _release_process(self, record: Record) -> None:
        self._status_client.close_connection(record.backend)
        self.watcher.unwatch(record.process)
        record.process.close()

    def ends_of(self, model: str, after_id: int = 0) -> list[EndedBackend]:
        """List the stored ends of a model's backends, oldest first.

        Args:
            model: the model's name.
            after_id: only ends with a greater number.
        """
        ends = self._registry.last_exits()
        return [each for each in ends if each.backend.model == model and each.id > after_id]

    def describe_last_exit(self, model: str, after_id: int = 0) -> str | None:
        """Describe the newest exit of a model's backends; None if no exit is stored.

        Args:
            model: the model's name.
            after_id: only describe an exit with a greater number.
        """
        for ended in self.ends_of(model, after_id)[-1:]:
            description = describe_exit_and_age(ended.exit, time.time())
            return f"its process {ended.backend.pid} {description}"
        return None

    def _on_exit(self, process: Process) -> None:
        record = self._registry.find(process.pid)
        if record and record.process is process:
            self.record_exit(record)

    def _record_baselines(self) -> None:
        self._ticks += 1
        for record in self._registry.records():
            try:
                self._record_baseline(record)
            except Exception:  # the baselines of the other backends must be recorded
                message = "the CPU baseline of process %d could not be recorded"
                _logger.exception(message, record.backend.pid)
        self._usage_reader.record_baseline()
        self._report_member_ends()

    def _report_member_ends(self) -> None:
        records = self._registry.records()
        self._member_ends.forget_except({record.members for record in records})
        for record in records:
            for end in self._member_ends.find(record.members, record.stopping):
                if not record.process.ended():  # otherwise the end is part of the exit
                    self._hooks.member_ended(record.backend, end)

    def _record_baseline(self, record: Record) -> None:
        try:
            record.sampler.record_baseline()
        except ProcessGone:
            self.record_exit(record)
            return
        is_young = time.monotonic() - record.registered_at < _YOUNG_SECONDS
        if record.output and (is_young or self._ticks % _TICKS_BETWEEN_LOOKS == 0):
            record.output.refresh()
        since, kills = record.oom.updated_at, record.oom.update()
        if unexplained := self._unexplained(kills, record, since):
            self._hooks.oom_kill(record.backend, unexplained, self._has_own_group(record))

    def _unexplained(self, kills: int, record: Record, since: float) -> int:
        """Subtract from the kills in a control group those that have ended other backends of it."""
        if not kills:
            return 0
        ended = self._ended_in_group(record, since)
        return max(0, kills - sum(each.exit.cause == "oom" for each in ended))

    def _ended_in_group(self, record: Record, since: float) -> list[EndedBackend]:
        """List the other backends that have ended in a backend's control group since a time."""
        return [
            each
            for each in self._registry.last_exits()
            if each.exit.ended_at >= since and _contains(record.oom.group, each.group)
        ]

    def _has_own_group(self, record: Record) -> bool:
        """Whether all processes of a backend's control group belong to the backend."""
        others = [each.oom.group for each in self._registry.records() if each is not record]
        return not (
            any(_contains(record.oom.group, other) for other in others)
            or self._ended_in_group(record, record.oom.updated_at)
            or record.oom.is_shared(record.members.root, record.members.identities())
        )


def _with_exit_code(ended: EndedBackend, exit_code: int) -> EndedBackend:
    """Add an exit code to an exit, if neither the code nor the signal is known."""
    exit = ended.exit
    if exit.exit_code is not None or exit.signal is not None:
        return ended
    stopped = exit.cause == "shutdown"
    exit = make_exit(exit_code, stopped, ended.oom_certain, exit.ended_at, exit.peak_rss)
    if ended.host_exit is not None:
        exit = complete_by_host(exit, ended.host_exit)
    return ended._replace(exit=exit)


def _contains(group: str | None, other: str | None) -> bool:
    """Whether a control group is another one, or is above it."""
    return group is not None and other is not None and f"{other}/".startswith(f"{group}/")
