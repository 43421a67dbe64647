"""The queue of one plugin: the order of its events, what is coalesced, and what is dropped."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from monitor_plugin import Backend, State
from monitor_plugin.domain.models import EventFigures
from monitor_plugin.plugins import plugin_queue
from monitor_plugin.plugins.executor import Implementation
from monitor_plugin.plugins.plugin_queue import PluginQueue, QueuedEvent

REGISTERED, STATE, GONE, LEFT_BEHIND, FINISHED = (
    "monitor_backend_registered",
    "monitor_state_changed",
    "monitor_backend_gone",
    "monitor_backend_left_behind",
    "monitor_shutdown_finished",
)
BUSY, READY, ERROR = State.BUSY, State.READY, State.ERROR


class Record:
    plugin_name = "p"


class Rig:
    """A queue, and the plugin's implementation of each hook."""

    def __init__(self) -> None:
        self.queue = PluginQueue()
        hooks = (REGISTERED, STATE, GONE, LEFT_BEHIND, FINISHED)
        self.hooks = {hook: Implementation(Record()) for hook in hooks}

    def put(self, hook: str, pid: int, at: float = 0.0, **arguments: Any) -> list[tuple[str, int]]:
        backend = Backend(arguments.pop("model", "m"), pid, "a", 1.0)
        event = QueuedEvent(hook, {"backend": backend, **arguments}, [self.hooks[hook]], at)
        return [(each.hook, each.arguments["backend"].pid) for each in self.queue.put(event)]

    def change(self, pid: int, *states: State | None, at: float = 0.0, **arguments: Any) -> None:
        """Put changes from each state to the next one."""
        for previous, current in pairwise(states):
            self.put(STATE, pid, at, previous=previous, current=current, **arguments)

    def take(self) -> list[tuple[Any, ...]]:
        """Take all events that can be taken."""
        found = []
        while event := self.queue.take():
            pid, facts = event.arguments["backend"].pid, event.arguments
            states = (facts["previous"], facts["current"]) if event.hook == STATE else ()
            found.append((event.hook, pid, *states))
        return found

    def figures(self, now: float = 0.0) -> tuple[int, int, int]:
        figures = self.queue.figures(now)
        return figures.waiting, figures.coalesced, figures.dropped


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_events_keep_their_order_for_each_backend(rig: Rig) -> None:
    """A registration comes before the states after it, and these before the exit."""
    rig.put(REGISTERED, 1)
    rig.change(1, None, BUSY, READY)
    rig.put(REGISTERED, 2)
    rig.change(2, None, READY)
    rig.put(GONE, 1)
    rig.put(FINISHED, 1)
    assert rig.take() == [
        (REGISTERED, 1),
        (REGISTERED, 2),
        (STATE, 1, None, BUSY),
        (STATE, 1, BUSY, READY),
        (GONE, 1),
        (FINISHED, 1),
        (STATE, 2, None, READY),
    ]
    assert not rig.queue


def test_new_registration_of_a_process_comes_after_its_states(rig: Rig) -> None:
    """The process is the same with another model; changes are not merged across that."""
    rig.change(1, None, BUSY)
    rig.put(REGISTERED, 1, 5.0, model="n")
    rig.change(1, BUSY, READY, at=5.0, model="n")
    assert rig.take() == [(STATE, 1, None, BUSY), (REGISTERED, 1), (STATE, 1, BUSY, READY)]


def test_changes_of_state_of_backends_take_turns(rig: Rig) -> None:
    """A backend with many changes does not hold up those of the others."""
    rig.change(1, None, BUSY, READY, BUSY)
    rig.change(2, None, READY)
    assert [event[1] for event in rig.take()] == [1, 2, 1, 1]


def test_plugin_that_keeps_up_hears_of_every_change(rig: Rig) -> None:
    """Changes are merged only once events have waited for a second."""
    rig.change(1, None, BUSY, READY, at=1.0)
    rig.change(1, READY, ERROR, at=1.9)
    assert len(rig.take()) == 3
    rig.change(1, ERROR, BUSY, at=50.0)  # the queue was empty meanwhile
    rig.change(1, BUSY, READY, at=50.9)
    assert len(rig.take()) == 2
    assert rig.figures() == (0, 0, 0)


def test_plugin_that_is_behind_gets_the_newest_state(rig: Rig) -> None:
    """The sequence of states that the plugin hears of stays without a gap."""
    rig.change(1, None, BUSY)
    rig.change(2, None, BUSY)
    rig.change(1, BUSY, READY, ERROR, at=1.0)
    assert rig.figures() == (2, 2, 0)
    assert rig.take() == [(STATE, 1, None, ERROR), (STATE, 2, None, BUSY)]


def test_state_that_the_plugin_knows_is_not_reported_again(rig: Rig) -> None:
    """A change and its reversal cancel each other."""
    rig.change(1, None, BUSY)
    rig.change(2, READY, BUSY)
    rig.change(2, BUSY, READY, at=1.0)
    assert rig.figures() == (1, 2, 0)
    assert rig.take() == [(STATE, 1, None, BUSY)]


def test_changes_of_one_backend_are_bounded_at_once(rig: Rig) -> None:
    """A backend that changes its state a thousand times within a second is no exception."""
    rig.change(1, *[BUSY, READY] * 500)
    waiting, coalesced, _ = rig.figures()
    assert waiting <= plugin_queue.MAX_STATES
    assert waiting + coalesced == 999
    found = rig.take()
    assert all(first[3] is second[2] for first, second in pairwise(found))
    assert found[-1][3] is READY


def test_late_state_hook_holds_up_no_other_hook(rig: Rig) -> None:
    """Its changes wait for its return; those of backends that have ended are dropped."""
    rig.hooks[STATE].overdue_calls = [None]
    rig.change(1, None, BUSY)
    rig.change(2, None, READY)
    rig.put(GONE, 1)
    rig.put(REGISTERED, 3)
    assert rig.take() == [(GONE, 1), (REGISTERED, 3)]
    assert rig.figures() == (1, 0, 1)
    assert not rig.queue.is_blocked()
    rig.hooks[STATE].overdue_calls = []
    assert rig.take() == [(STATE, 2, None, READY)]


@pytest.mark.parametrize("late", [REGISTERED, GONE, LEFT_BEHIND, FINISHED])
def test_events_wait_for_the_return_of_a_late_hook(rig: Rig, late: str) -> None:
    """Without a loss: a hook that takes longer than its time hears of everything in the end."""
    rig.hooks[late].overdue_calls = [None]
    events = [(late, 1), (GONE, 2)]
    for hook, pid in events:
        rig.put(hook, pid)
    assert rig.take() == []
    assert rig.queue.is_blocked()
    rig.hooks[late].overdue_calls = []
    assert rig.take() == events


def test_exits_are_the_last_to_be_dropped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like what they left behind. First the changes of state, then registrations and outcomes."""
    monkeypatch.setattr(plugin_queue, "MAX_EVENTS", 4)
    rig.put(GONE, 9)
    rig.put(REGISTERED, 1)
    rig.change(1, None, BUSY, READY)
    assert rig.put(GONE, 1) == [(STATE, 1)]
    assert rig.put(FINISHED, 1) == [(STATE, 1)]
    dropped = [rig.put(*event) for event in ((GONE, 2), (LEFT_BEHIND, 2), (GONE, 4))]
    assert dropped == [[(REGISTERED, 1)], [(FINISHED, 1)], [(GONE, 9)]]
    assert rig.figures() == (4, 0, 5)
    assert rig.take() == [(GONE, 1), (GONE, 2), (LEFT_BEHIND, 2), (GONE, 4)]


def test_figures_say_how_far_a_plugin_is_behind(rig: Rig) -> None:
    """The oldest event counts, also if it was merged with newer ones."""
    assert rig.queue.figures(70.0) == EventFigures(0, 0.0, 0, 0)
    rig.change(1, None, BUSY, at=60.0)
    rig.change(1, BUSY, READY, at=69.0)
    rig.put(GONE, 2, 68.0)
    assert rig.queue.figures(70.0) == EventFigures(2, 10.0, 1, 0)


def test_event_that_was_not_delivered_comes_first_again(rig: Rig) -> None:
    """For the next try."""
    rig.put(GONE, 1)
    rig.put(GONE, 2)
    event = rig.queue.take()
    assert event
    rig.queue.put_back(event)
    assert rig.take() == [(GONE, 1), (GONE, 2)]
