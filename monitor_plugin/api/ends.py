"""The answers about backends that have ended."""

from __future__ import annotations

from typing import Any

from ..backends.registry import EndedBackend
from ..domain.exits import exit_to_dict
from ..domain.models import Observation, state_name, utc_datetime
from .schemas import LastReadingItem, PostMortemItem


def end_fields(ended: EndedBackend, with_output: bool) -> dict[str, Any]:
    """Return the fields of `EndItem`; the last output, which is for admins alone, may be left out.

    The exit of the post-mortem is not used: its code may have been completed since.
    """
    backend, exit, postmortem = ended.backend, ended.exit, ended.postmortem
    return {
        "id": ended.id,
        "model": backend.model,
        "pid": backend.pid,
        "address": backend.address,
        "created_at": utc_datetime(backend.created_at),
        "ended_at": utc_datetime(exit.ended_at),
        **exit_to_dict(exit, ended.host_exit),
        "left_behind": None if ended.left_behind is None else list(ended.left_behind),
        "last_output": postmortem.last_output if postmortem and with_output else None,
        "host_exit": ended.host_exit,
    }


def postmortem_item(ended: EndedBackend, with_output: bool, node: str | None) -> PostMortemItem:
    """Return the answer of `/ended/ID`; until there is a post-mortem, some fields are None."""
    postmortem = ended.postmortem
    return PostMortemItem(
        **end_fields(ended, with_output),
        uptime_seconds=ended.uptime_seconds,
        ready_seconds=postmortem.ready_seconds if postmortem else None,
        ends_last_hour=ended.ends_last_hour,
        last_reading=_last_reading(postmortem.last_observation) if postmortem else None,
        node=node,
    )


def _last_reading(observation: Observation | None) -> LastReadingItem | None:
    if observation is None or observation.reading is None:
        return None
    reading, tree = observation.reading, observation.tree
    return LastReadingItem(
        at=utc_datetime(reading.taken_at),
        state=observation.state,
        state_name=state_name(observation.state),
        source=reading.source,
        rpc_error=reading.rpc_error,
        memory=observation.memory,
        memory_source=observation.memory_source,
        rss=tree.rss if tree else None,
        cpu_percent=tree.cpu_percent if tree else None,
        processes=tree.processes if tree else None,
    )
