"""What servers tell of their load, and the state that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from time import monotonic
from typing import Any, NamedTuple

from ..domain.models import State, Status
from .protocol import Answer, BusyWhen, NoStatus, amount


class Load(NamedTuple):
    """The load of a server. None means that the server does not tell it.

    Attributes:
        running: how many requests it is working on.
        waiting: how many requests wait.
        tokens_per_second: how many tokens it generates per second, for all requests together.
        kv_cache_percent: the used part of its KV cache, in percent of the cache.
    """

    running: int | None = None
    waiting: int | None = None
    tokens_per_second: float | None = None
    kv_cache_percent: float | None = None

    def status(self, busy_when: BusyWhen, capacity: int | None = None) -> Status:
        """Return the status of a server that answers.

        Args:
            busy_when: see the setting of that name. The server is full if requests wait, or if it
                works on as many as it can.
            capacity: on how many requests it can work at the same time; None if that is unknown.
        """
        enough = 1 if busy_when == "any" else capacity
        works = bool(self.running and enough and self.running >= enough)
        return Status(State.BUSY if works or self.waiting else State.READY, None, *self)


class Rate:
    """The rate of a counter between two readings."""

    # After a shorter time the rate is inexact, as servers count in batches. After a longer time,
    # the mean says nothing of the present.
    _MIN_SECONDS = 0.5
    _MAX_SECONDS = 60.0

    def __init__(self) -> None:
        self._mark: tuple[float, float] | None = None  # the time, and the counter
        self._per_second: float | None = None

    def update(self, counter: float | None) -> float | None:
        """Return the increase per second since the reading before.

        Returns:
            None at the first reading, if the counter is unknown or has been reset, and if the
            reading before is more than 60 s ago. Within 0.5 s of the reading before, the result of
            that one.
        """
        now = monotonic()
        mark, self._mark = self._mark, None
        if counter is None or mark is None:
            self._per_second = None
        elif now - mark[0] < self._MIN_SECONDS and counter >= mark[1]:
            self._mark = mark
            return self._per_second
        else:
            seconds, increase = now - mark[0], counter - mark[1]
            is_valid = increase >= 0 and seconds <= self._MAX_SECONDS
            self._per_second = increase / seconds if is_valid else None
        if counter is not None:
            self._mark = now, counter
        return self._per_second


def total(values: Iterable[object]) -> float | None:
    """Return the sum of a server's figures; None if there is none, or one of them is invalid."""
    amounts = [amount(each) for each in values]
    known = [each for each in amounts if each is not None]
    return amount(math.fsum(known)) if known and len(known) == len(amounts) else None


def mean_percent(shares: Iterable[object]) -> float | None:
    """Return the mean of a server's shares from 0 to 1, in percent.

    Returns:
        None if there is none, or one of them is invalid.
    """
    amounts = [amount(each) for each in shares]
    known = [each for each in amounts if each is not None and each <= 1]
    if not known or len(known) < len(amounts):
        return None
    return 100 * math.fsum(known) / len(known)


def is_failure(answer: Answer, *statuses: int) -> bool:
    """Whether an answer has one of these status codes, and comes from the server itself.

    A proxy before the server answers with HTML.
    """
    return answer.status in statuses and answer.content_type != "text/html"


def json_fields(answer: Answer) -> dict[str, Any]:
    """Return the fields of an answer with a JSON object; none for any other answer."""
    try:
        return as_object(answer.json())
    except NoStatus:
        return {}


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object as it is, and an empty one for any other value."""
    return value if isinstance(value, dict) else {}


def as_objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a JSON array; none for any other value."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
