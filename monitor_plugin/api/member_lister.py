"""Lists the members of a model's backends, each with its own figures."""

from __future__ import annotations

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..domain.errors import BackendUnreadable, ModelNotLoaded, PidNotHeld
from ..domain.models import utc_datetime
from ..processes.process import process_user
from ..processes.process_table import TICKS_PER_SECOND
from ..processes.usage import UsageReader, UsageSnapshot
from .schemas import BackendMembersItem, MemberItem, MembersAnswer


class MemberLister:
    """Lists the processes that belong to the backends of a model. Safe to call from any thread.

    Args:
        registry: the registered backends.
        exit_recorder: records the exit of a backend whose process has ended.
        usage_reader: gives the snapshot that all backends are listed from.
    """

    def __init__(
        self, registry: Registry, exit_recorder: ExitRecorder, usage_reader: UsageReader
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._usage_reader = usage_reader

    def list(self, model: str, pid: int | None) -> MembersAnswer:
        """List the members of a model's backends, or of its backend with a PID.

        Raises:
            PidNotHeld: the model has no backend with that PID.
            ModelNotLoaded: the model has no backend.
            BackendUnreadable: no file descriptor is free to read the process table.
        """
        while records := self._registry.records(model):
            chosen = [each for each in records if pid in (None, each.backend.pid)]
            if pid is not None and not chosen:
                raise PidNotHeld(model, pid, [each.backend.pid for each in records])
            try:
                usage = self._usage_reader.read([each.members for each in chosen])
            except OSError as error:
                raise BackendUnreadable(model, chosen[0].backend.pid, str(error)) from None
            backends = [_backend_item(each, usage) for each in chosen]
            # Check after the reading: a PID may belong to another process now.
            ended = [each for each in chosen if each.process.ended()]
            if not ended:
                return MembersAnswer(backends)
            for each in ended:
                self._exit_recorder.record_exit(each)
        raise ModelNotLoaded(model, self._exit_recorder.describe_last_exit(model))


def _backend_item(record: Record, usage: UsageSnapshot) -> BackendMembersItem:
    backend = record.backend
    # The root comes first, also where it is hidden from the monitor's user.
    pids = dict.fromkeys([backend.pid, *usage.pids(record.members)])
    users: dict[int, str] = {}
    return BackendMembersItem(
        model=backend.model,
        pid=backend.pid,
        address=backend.address,
        members=[_member_item(pid, record, usage, users) for pid in pids],
    )


def _member_item(
    pid: int, record: Record, usage: UsageSnapshot, users: dict[int, str]
) -> MemberItem:
    """Describe a member; `users` caches the names of users by their numbers."""
    is_root = pid == record.backend.pid
    row = usage.row(pid)
    if row is None:
        return MemberItem(pid=pid)
    # The kernel reports 0 for the memory of a process that has ended or is about to end.
    runs = row.vms > 0
    cpu_percent = (
        record.sampler.cpu_percent(row.cpu_seconds, row.read_at)  # that of `process`
        if is_root
        else usage.cpu_percent(pid)
    )
    # Relative to the root, so that its time is exactly that of the backend in `/backends`.
    created_at = record.backend.created_at + (row.started - record.members.root[1]) / (
        TICKS_PER_SECOND
    )
    return MemberItem(
        pid=pid,
        parent=row.parent or None,
        name=row.name,
        user=process_user(pid, users),
        is_zombie=row.is_zombie,
        rss=row.rss if runs else None,
        cpu_percent=cpu_percent if runs else None,
        threads=row.threads if runs else None,
        created_at=utc_datetime(created_at),
    )
