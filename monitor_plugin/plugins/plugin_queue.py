"""The events that wait for the hooks of one plugin: bounded, and in order for each backend."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from ..domain.models import EventFigures
from .executor import Implementation

STATE_CHANGED = "monitor_state_changed"
GONE = "monitor_backend_gone"
LEFT_BEHIND = "monitor_backend_left_behind"
POSTMORTEM = "monitor_backend_postmortem"

# Maximum number of events that wait, enough for thousands of exits at the same time. Changes of
# state do not count while no other event of the backend follows them: MAX_STATES limits those.
MAX_EVENTS = 10_000

# A plugin that is behind by this time, or by this number of changes of a backend's state, gets only
# the backend's newest state.
BEHIND_SECONDS = 1.0
MAX_STATES = 10


class Delivery:
    """The delivery of one event to all plugins. Not thread-safe, except for `done`.

    Attributes:
        expected: the number of plugins that have not returned; plus 1 until all plugins are known.
        done: set when all plugins have returned.
    """

    def __init__(self) -> None:
        self.expected = 1
        self.done = threading.Event()

    def count_down(self) -> None:
        """Expect one plugin less: the plugin has returned, or its event was dropped."""
        self.expected -= 1
        if not self.expected:
            self.done.set()


class QueuedEvent(NamedTuple):
    """An event that waits for one plugin.

    Attributes:
        hook: the hook that reports the event.
        arguments: the arguments of the hook.
        implementations: the plugin's implementations of the hook, usually one.
        at: when the event was queued (monotonic seconds); of coalesced changes of state, when the
            first one was.
        delivery: counts the plugins that have returned; None if the publisher does not wait for
            this plugin.
    """

    hook: str
    arguments: Mapping[str, Any]
    implementations: Sequence[Implementation]
    at: float
    delivery: Delivery | None = None

    @property
    def process(self) -> tuple[int, float]:
        """The PID and the creation time of the backend, which stay the same at a new address."""
        backend = self.arguments["backend"]
        return backend.pid, backend.created_at

    def is_late(self) -> bool:
        """Whether a call of the hook overran and has not returned yet."""
        return any(each.overdue_calls for each in self.implementations)


class PluginQueue:
    """The events that wait for one plugin. Not thread-safe.

    The events of a backend keep their order. All events but changes of state come
    before the changes of state of other backends, so that a slow `monitor_state_changed` does not
    delay them. If events have waited without a break for BEHIND_SECONDS, or if MAX_STATES changes
    of a backend's state wait, a further change is merged into the last one that waits: the merged
    event has the `previous` of the older change, and the `current` of the newer one.
    """

    def __init__(self) -> None:
        # All events but changes of state, each after its backend's earlier changes of state.
        self._ordered: deque[QueuedEvent] = deque()
        self._states: dict[tuple[int, float], deque[QueuedEvent]] = {}
        self._waiting_since = 0.0  # when the first event was added to the empty queue
        self._coalesced = self._dropped = 0

    def __bool__(self) -> bool:
        """Whether an event waits."""
        return bool(self._ordered or self._states)

    def put(self, event: QueuedEvent) -> list[QueuedEvent]:
        """Add an event; return the events that were dropped because the queue is full."""
        if not self:
            self._waiting_since = event.at
        if event.hook == STATE_CHANGED:
            self._put_state(event)
            return []
        self._ordered.extend(self._states.pop(event.process, ()))
        self._ordered.append(event)
        return [self._drop() for _ in range(len(self._ordered) - MAX_EVENTS)]

    def _put_state(self, event: QueuedEvent) -> None:
        waiting = self._states.setdefault(event.process, deque())
        is_behind = event.at - self._waiting_since >= BEHIND_SECONDS or len(waiting) >= MAX_STATES
        if not waiting or not is_behind:
            waiting.append(event)
            return
        last = waiting.pop()
        self._coalesced += 1
        previous = last.arguments["previous"]
        if event.arguments["current"] != previous:
            arguments = {**event.arguments, "previous": previous}
            waiting.append(event._replace(arguments=arguments, at=last.at))
        else:  # the state is back at `previous`, so there is no change to report
            self._coalesced += 1
            if not waiting:
                del self._states[event.process]

    def put_back(self, event: QueuedEvent) -> None:
        """Add an event that was taken, and not delivered, as the next one."""
        self._ordered.appendleft(event)

    def take(self) -> QueuedEvent | None:
        """Remove and return the next event.

        Returns:
            None if no event waits, or if an earlier call of the next event's hook has not returned.
        """
        while self._ordered:
            event = self._ordered[0]
            is_late = event.is_late()
            if is_late and event.hook != STATE_CHANGED:
                return None
            self._ordered.popleft()
            if not is_late:
                return event
            self._dropped += 1  # it must not delay the exit or registration that follows
        for process, waiting in self._states.items():
            if waiting[0].is_late():
                break
            event = waiting.popleft()
            del self._states[process]
            if waiting:  # its next change comes after those of the other backends
                self._states[process] = waiting
            return event
        return None

    def is_blocked(self) -> bool:
        """Whether the next event waits because an earlier call of its hook has not returned."""
        first = self._ordered[0] if self._ordered else None
        return bool(first and first.hook != STATE_CHANGED and first.is_late())

    def figures(self, now: float) -> EventFigures:
        """Return how far the plugin is behind at the time `now` (monotonic seconds)."""
        waiting = list(chain(self._ordered, *self._states.values()))
        oldest = min((event.at for event in waiting), default=now)
        return EventFigures(len(waiting), now - oldest, self._coalesced, self._dropped)

    def _drop(self) -> QueuedEvent:
        """Drop the oldest change of state; without one, another event, and exits last."""
        self._dropped += 1
        index, event = min(enumerate(self._ordered), key=lambda pair: _importance(pair[1]))
        del self._ordered[index]
        return event


def _importance(event: QueuedEvent) -> int:
    return {STATE_CHANGED: 0, GONE: 2, LEFT_BEHIND: 2, POSTMORTEM: 2}.get(event.hook, 1)
