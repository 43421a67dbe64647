"""The implementations of a hook, called in turn on one thread, while another watches their time."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from ..domain.models import HookFigures


class HookOverran(Exception):
    """An implementation is not back in its time."""


class WrongType(Exception):
    """An implementation returned what its hook does not take; quotes no value, a secret perhaps."""

    def __init__(self, value: object, wanted: str) -> None:
        super().__init__(f"returned {type(value).__name__}, and should return {wanted}")


class HookOutcome(NamedTuple):
    """What one implementation gave: a value, or what it raised, `HookOverran` or `WrongType`."""

    plugin_name: str
    value: Any
    error: BaseException | None


class Implementation:
    """One implementation of a hook, and what it has cost; its figures change under a lock alone.

    Attributes:
        found: Pluggy's record of it.
        shape: which of the hook's selections of arguments it takes.
        calls, errors, overruns: how often it was called, raised or gave a wrong type, and was not
            back in time.
        seconds_total, seconds_max: how long its calls took, of one under way until it overran.
        away: how many calls have overrun and are not back yet; until then there are no others.
    """

    __slots__ = (
        *("found", "plugin_name", "function", "shape", "away"),
        *("calls", "errors", "overruns", "seconds_total", "seconds_max"),
    )

    def __init__(self, found: Any, shape: int) -> None:
        self.found = found
        self.plugin_name = str(found.plugin_name)
        self.function: Callable[..., Any] = found.function
        self.shape = shape
        self.away = self.calls = self.errors = self.overruns = 0
        self.seconds_total = self.seconds_max = 0.0

    def add(self, calls: int, seconds: float, longest: float) -> None:
        """Count calls, and time that they took."""
        self.calls += calls
        self.seconds_total += seconds
        if longest > self.seconds_max:
            self.seconds_max = longest

    def figures(self, hook: str) -> HookFigures:
        """Give its figures as they are now."""
        return HookFigures(
            hook, self.calls, self.errors, self.overruns, self.seconds_total, self.seconds_max
        )


class HookArguments(NamedTuple):
    """What implementations are called with, and what becomes of their answers.

    Attributes:
        arguments: for each shape.
        check: gives an answer as it is used, None for one that says nothing, or raises `WrongType`.
        ends: whether those after an outcome are not asked.
    """

    arguments: Sequence[Sequence[Any]]
    check: Callable[[Any], Any]
    ends: Callable[[HookOutcome], bool]


class HookRun:
    """Implementations that one thread calls in turn, each of which the watching thread may give up.

    Nothing is locked between two of them: who takes a turn from the list has it, and the watcher
    takes all that are left before it decides whether the one under way is overdue.

    Args:
        implementations: in their order.
        question: what they are asked.
        lock: under which figures change.

    Attributes:
        outcomes: of those that said something, with their places, once `wait` has returned.
        left: those whose turn did not come.
    """

    def __init__(
        self,
        implementations: Sequence[Implementation],
        question: HookArguments,
        lock: threading.Lock,
    ) -> None:
        self.outcomes: list[HookOutcome] = []
        self.left: list[Implementation] = []
        self._implementations = implementations
        self._question = question
        self._lock = lock
        self._turns = [*reversed(implementations)]
        self._given: list[tuple[int, HookOutcome]] = []
        # When the first one was begun, and when each was back.
        self._times = [perf_counter()]
        self._skipped: set[int] = set()
        self._finished = False
        self._counted = 0
        self._overdue = 0.0  # what the first that is not counted had taken when it was given up
        self._done = threading.Lock()
        self._done.acquire()

    def work(self) -> None:
        """Call them, then let `wait` return. Raises nothing."""
        arguments, check, ends = self._question
        times = self._times
        take_turn, note, clock = self._turns.pop, times.append, perf_counter
        times[0] = clock()
        while True:
            try:
                each = take_turn()
            except IndexError:  # all had theirs, or the watcher took the others
                break
            value: Any = None
            error: BaseException | None = None
            if each.away:
                error = HookOverran("an earlier call of it is not back yet")
                self._skipped.add(len(times) - 1)
            else:
                try:
                    value = each.function(*arguments[each.shape])
                    if value is None:
                        note(clock())
                        continue
                    value = check(value)
                except BaseException as raised:  # a cancelled task's, say: it ends this turn
                    error = raised
                    if inspect.iscoroutine(value):
                        value.close()  # nothing would await it
                    value = None
            if value is not None or error is not None:
                outcome = HookOutcome(each.plugin_name, value, error)
                self._given.append((len(times) - 1, outcome))
                if ends(outcome):
                    self._turns.clear()
            note(clock())
        with self._lock:
            self._finished = True
            self._count(len(times) - 1)
        self._done.release()

    def _count(self, until: int) -> None:
        """Count those that are back, up to a place, and were not counted yet."""
        start, skipped, overdue = self._counted, self._skipped, self._overdue
        self._counted = until
        for place, outcome in self._given:
            if start <= place < until and place not in skipped:
                self._implementations[place].errors += outcome.error is not None
        if overdue:
            each = self._implementations[start]
            seconds = self._times[start + 1] - self._times[start]
            each.away -= 1
            each.add(0, seconds - overdue, seconds)
            start += 1
        before = self._times[start]
        for place in range(start, until):
            each, after = self._implementations[place], self._times[place + 1]
            if not skipped or place not in skipped:
                # As `add` does, which would take longer than some implementations.
                each.calls += 1
                each.seconds_total += after - before
                if after - before > each.seconds_max:
                    each.seconds_max = after - before
            before = after

    def wait(self, seconds: float) -> Implementation | None:
        """Wait until each had its turn, or one overran; gives that one.

        Args:
            seconds: how long each may take.
        """
        while not self._done.acquire(timeout=max(0.001, self._seconds_left(seconds))):
            self._take_turns()
            with self._lock:
                place = len(self._times) - 1
                begun = len(self._implementations) - len(self.left)
                if self._finished or place == begun > 0 or self._seconds_left(seconds) > 0:
                    continue
                if begun == 0:  # the thread has not come to it: a busy machine's fault
                    return None
                self._count(place)
                each = self._implementations[place]
                self._overdue = perf_counter() - self._times[-1]
                each.away += 1
                each.overruns += 1
                each.add(1, self._overdue, self._overdue)
                self.outcomes = [outcome for at, outcome in self._given if at < place]
                return each
        self.outcomes = [outcome for _, outcome in self._given]
        return None

    def _seconds_left(self, seconds: float) -> float:
        return self._times[-1] + seconds - perf_counter()

    def _take_turns(self) -> None:
        while self._turns:
            try:
                self.left.append(self._turns.pop())
            except IndexError:
                return
