"""Combines the readings of a model's replicas into one reading."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..domain.figures import sum_known
from ..domain.models import Backend, Memory, Reading, Sample, State, Status


class SourcedMemory(NamedTuple):
    """The memory of one or more backends.

    Attributes:
        memory: None if the total is not known.
        source: where the total comes from: see `Reading.memory_source`.
        age_seconds: how long ago PSS was read, if it is part of the total.
    """

    memory: Memory | None
    source: str | None
    age_seconds: float | None = None


NO_SAMPLE = Sample(None, None, None, None)
NO_MEMORY = SourcedMemory(None, None)
_NO_FIGURES = Status(State.UNINITIALIZED)

_MAX_BYTES = 2**64 - 1
# From the worst to the best. None stands for the numbers that the protocol does not define.
_RANKS = (State.ERROR, State.UNINITIALIZED, State.BUSY, None, State.READY)


def unreadable_reading(backend: Backend) -> Reading:
    """Return the reading of a replica that cannot be read, for `combine`."""
    return Reading(backend, None, NO_SAMPLE, "psutil", None, time.time())


def sourced_memory(reading: Reading) -> SourcedMemory:
    """Return the memory in a reading that has a status."""
    memory = reading.status.memory if reading.status else None
    return SourcedMemory(memory, reading.memory_source, reading.memory_age_seconds)


def combine(readings: Sequence[Reading], memories: Sequence[SourcedMemory]) -> Reading:
    """Combine the readings of replicas: the worst state, sums, and the fullest KV cache.

    A sum is None if the figure of any replica is unknown.

    Args:
        readings: the readings of one or more backends, the newest last.
        memories: the memory of each backend; empty if none of the readings has a status.
    """
    if len(readings) == 1:
        return readings[0]
    states = [each.status.state for each in readings if each.status is not None]
    figures = [each.status or _NO_FIGURES for each in readings]
    caches = [each.kv_cache_percent for each in figures if each.kv_cache_percent is not None]
    status = sample = None
    total = NO_MEMORY
    if states:
        total = sum_memories(memories)
        status = Status(
            min(states, key=_rank),
            total.memory,
            sum_known(each.requests_running for each in figures),
            sum_known(each.requests_waiting for each in figures),
            sum_known(each.tokens_per_second for each in figures),
            max(caches, default=None),
        )
    else:
        samples = [each.sample for each in readings if each.sample is not None]
        sample = Sample(
            rss=sum_known(each.rss for each in samples),
            vms=sum_known(each.vms for each in samples),
            memory_percent=sum_known(each.memory_percent for each in samples),
            cpu_percent=sum_known(each.cpu_percent for each in samples),
        )
    errors = (each.status_error for each in readings)
    sources = (each.source for each in readings if each.status is not None or not states)
    return Reading(
        backend=readings[-1].backend,
        status=status,
        sample=sample,
        source=_join_words(sources) or "",
        rpc_error=_join_words(each.rpc_error for each in readings),
        taken_at=min(each.taken_at for each in readings),
        memory_source=total.source,
        replicas=sum(each.replicas for each in readings),
        address_owner=next((each.address_owner for each in readings if each.address_owner), None),
        memory_age_seconds=total.age_seconds,
        protocol=_join_words(each.protocol for each in readings),
        status_error="; ".join(dict.fromkeys(filter(None, errors))) or None,
    )


def _rank(state: int) -> int:
    known = state in State.__members__.values()
    return _RANKS.index(State(state) if known else None)


def sum_memories(memories: Sequence[SourcedMemory]) -> SourcedMemory:
    """Add up the memory of several backends; `NO_MEMORY` if the memory of any is unknown.

    The age is that of the oldest figure.
    """
    known = [each.memory for each in memories if each.memory is not None]
    if len(known) < len(memories):
        return NO_MEMORY
    breakdown: Counter[str] = Counter()
    for memory in known:
        breakdown.update(memory.breakdown)
    total = Memory(
        min(_MAX_BYTES, sum(memory.total for memory in known)),
        {name: min(_MAX_BYTES, amount) for name, amount in sorted(breakdown.items())},
    )
    ages = [each.age_seconds for each in memories if each.age_seconds is not None]
    return SourcedMemory(
        total, _join_words(each.source for each in memories), max(ages, default=None)
    )


def _join_words(words: Iterable[str | None]) -> str | None:
    """Join words and comma-separated words, without duplicates; None if there is no word."""
    split = (part for word in words if word for part in word.split(", "))
    return ", ".join(dict.fromkeys(split)) or None
