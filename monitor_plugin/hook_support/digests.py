"""Gathers what happens to each model into few messages for people."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import NamedTuple

_MAX_ITEMS = 20
_HOURS = re.compile(r"(\d\d?):(\d\d)-(\d\d?):(\d\d)", re.ASCII)


class Item(NamedTuple):
    """Something that happened to a model: when, by the local clock, and what, as a clause."""

    at: datetime
    text: str


class Digest(NamedTuple):
    """The items of one message about a model.

    Attributes:
        model: the model's name.
        items: the newest items, oldest first, at most 20.
        left_out: how many older items were left out.
        is_recovery: whether it only tells that the model has recovered.
    """

    model: str
    items: tuple[Item, ...]
    left_out: int
    is_recovery: bool


@dataclass
class _Waiting:
    """The waiting items of a model, and its last message; times by the monotonic clock."""

    items: deque[Item] = field(default_factory=lambda: deque(maxlen=_MAX_ITEMS))
    count: int = 0
    since: float = 0.0
    sent_at: float | None = None
    # Whether the last message told of trouble, and no recovery was told since.
    is_in_trouble: bool = False
    is_recovery: bool = False


class Digests:
    """Decides when to send a message about which model. Not thread-safe; it reads no clock.

    A message waits some seconds for further items. A second message about a model waits until
    `repeat_seconds` after the first, except one which only tells that the model has recovered.

    Args:
        gather_seconds: how long a message waits for further items.
        repeat_seconds: the shortest time between two messages about a model.
    """

    def __init__(self, gather_seconds: float, repeat_seconds: float) -> None:
        self._gather_seconds = gather_seconds
        self._repeat_seconds = repeat_seconds
        self._models: dict[str, _Waiting] = {}

    def add(self, model: str, item: Item, now: float, *, is_recovery: bool = False) -> None:
        """Add an item at a time by the monotonic clock."""
        waiting = self._models.setdefault(model, _Waiting())
        if not waiting.items:
            waiting.since = now
            waiting.is_recovery = is_recovery
        waiting.is_recovery &= is_recovery
        waiting.items.append(item)
        waiting.count += 1

    def replace(self, model: str, item: Item, newer: Item) -> None:
        """Put a newer item in the place of one that still waits, if it does."""
        waiting = self._models.get(model)
        if waiting is not None and item in waiting.items:
            waiting.items[waiting.items.index(item)] = newer

    def due_at(self) -> float | None:
        """Return when the next message is due (monotonic seconds); None if no item waits."""
        return min(
            (self._due_at(each) for each in self._models.values() if each.items), default=None
        )

    def _due_at(self, waiting: _Waiting) -> float:
        gathered_at = waiting.since + self._gather_seconds
        is_news = waiting.is_recovery and waiting.is_in_trouble
        if waiting.sent_at is None or is_news:
            return gathered_at
        return max(gathered_at, waiting.sent_at + self._repeat_seconds)

    def _is_over(self, waiting: _Waiting, now: float) -> bool:
        """Whether the last message about a model no longer delays another one."""
        return waiting.sent_at is None or now >= waiting.sent_at + self._repeat_seconds

    def take(self, now: float) -> list[Digest]:
        """Remove and return the messages that are due at a time by the monotonic clock."""
        taken = []
        for model, waiting in list(self._models.items()):
            if waiting.items and self._due_at(waiting) <= now:
                items = tuple(waiting.items)
                taken.append(Digest(model, items, waiting.count - len(items), waiting.is_recovery))
                is_in_trouble = not waiting.is_recovery
                # A message of a recovery does not delay the next message of trouble any further.
                sent_at = now if is_in_trouble else waiting.sent_at
                self._models[model] = _Waiting(sent_at=sent_at, is_in_trouble=is_in_trouble)
            elif not (waiting.items or waiting.is_in_trouble) and self._is_over(waiting, now):
                del self._models[model]
        return taken


class QuietHours(NamedTuple):
    """A part of each day, by the local clock; it may contain midnight."""

    begin: time
    end: time

    def contain(self, now: time) -> bool:
        """Whether a time of day is in it."""
        if self.begin <= self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end


def parse_quiet_hours(text: str) -> QuietHours:
    """Parse `22:00-07:00`.

    Raises:
        ValueError: the text has another form, or is the whole day.
    """
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError("it is not HH:MM-HH:MM")
    numbers = [int(each) for each in match.groups()]
    hours = QuietHours(time(numbers[0], numbers[1]), time(numbers[2], numbers[3]))
    if hours.begin == hours.end:
        raise ValueError("it begins when it ends")
    return hours
