"""One reading out of those of a model's replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ..domain.models import Memory, Reading, Sample, State, Status

Number = TypeVar("Number", int, float)

_MAX_BYTES = 2**64 - 1
# From the worst to the best; a number that the protocol does not know may be anything but ready.
_RANKS = (State.ERROR, State.UNINITIALIZED, State.BUSY, None, State.READY)


def combine(
    readings: Sequence[Reading], held: Sequence[tuple[Memory | None, str | None]]
) -> Reading:
    """Combine the readings of replicas: the worst state, and sums.

    A sum is None where one of its parts is: what leaves a replica out is no sum.

    Args:
        readings: of one or more backends, the newest last.
        held: where one of them has a status: what each holds, and who says so.
    """
    if len(readings) == 1:
        return readings[0]
    states = [each.status.state for each in readings if each.status is not None]
    status = sample = memory_source = None
    if states:
        memory = sum_of_memories([each for each, _ in held])
        status = Status(min(states, key=_rank), memory)
        memory_source = join_words(source for _, source in held) if memory is not None else None
    else:
        samples = [each.sample for each in readings if each.sample is not None]
        sample = Sample(
            rss=_sum(each.rss for each in samples),
            vms=_sum(each.vms for each in samples),
            memory_percent=_sum(each.memory_percent for each in samples),
            cpu_percent=_sum(each.cpu_percent for each in samples),
        )
    sources = (each.source for each in readings if each.status is not None or not states)
    return Reading(
        backend=readings[-1].backend,
        status=status,
        sample=sample,
        source=join_words(sources) or "",
        rpc_error=join_words(each.rpc_error for each in readings),
        taken_at=min(each.taken_at for each in readings),
        memory_source=memory_source,
        replicas=sum(each.replicas for each in readings),
    )


def _rank(state: int) -> int:
    known = state in State.__members__.values()
    return _RANKS.index(State(state) if known else None)


def sum_of_memories(memories: Sequence[Memory | None]) -> Memory | None:
    """Add up what several hold; None where one of them is not known."""
    known = [memory for memory in memories if memory is not None]
    if len(known) < len(memories):
        return None
    breakdown: Counter[str] = Counter()
    for memory in known:
        breakdown.update(memory.breakdown)
    return Memory(
        min(_MAX_BYTES, sum(memory.total for memory in known)),
        {name: min(_MAX_BYTES, amount) for name, amount in sorted(breakdown.items())},
    )


def _sum(figures: Iterable[Number | None]) -> Number | None:
    total: Number | None = None
    for figure in figures:
        if figure is None:
            return None
        total = figure if total is None else total + figure
    return total


def join_words(words: Iterable[str | None]) -> str | None:
    """List what differs of some words, or lists of them; None where there is none."""
    split = (part for word in words if word for part in word.split(", "))
    return ", ".join(dict.fromkeys(split)) or None
