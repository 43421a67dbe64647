"""Calls the implementations of hooks on threads of its own, each within its time."""

from __future__ import annotations

import inspect
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import pluggy

from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import MonitorError
from ..domain.models import HookFigures
from .manager import is_wrapper

_logger = logging.getLogger(__name__)


class HookOverran(Exception):
    """An implementation did not return within its time."""


class WrongType(Exception):
    """An implementation returned a value that its hook does not accept.

    The message has the type and not the value, which may be a secret.
    """

    def __init__(self, value: object, wanted: str) -> None:
        super().__init__(f"returned {type(value).__name__}, and should return {wanted}")


class HookOutcome(NamedTuple):
    """What one implementation returned or raised; the error may be `HookOverran` or `WrongType`."""

    plugin_name: str
    value: Any
    error: BaseException | None


def validate_nothing(value: Any) -> Any:
    """Accept None only: the check of a hook that returns nothing."""
    raise WrongType(value, "nothing")


class HookCall(NamedTuple):
    """A hook that is to be called.

    Attributes:
        hook: the hook's name.
        seconds: the time that each implementation has; None for no limit.
        arguments: the arguments that the hook's spec names.
        validate: gets each returned value that is not None. Returns the valid value, or None for
            one that says nothing; raises `WrongType`. Runs within the implementation's time.
        is_last: whether an outcome ends the call, so that later implementations are not called.
    """

    hook: str
    seconds: float | None
    arguments: Mapping[str, Any]
    validate: Callable[[Any], Any] = validate_nothing
    is_last: Callable[[HookOutcome], bool] = lambda outcome: False


class Implementation:
    """One implementation of a hook, and its figures; these change under the executor's lock.

    Attributes:
        found: Pluggy's record of it.
        away: number of calls that have overrun and not returned yet. It is not called until this
            is 0.
    """

    __slots__ = (
        *("found", "plugin_name", "function", "argument_names", "away"),
        *("calls", "errors", "overruns", "seconds_total", "seconds_max"),
    )

    def __init__(self, found: Any) -> None:
        self.found = found
        self.plugin_name = str(found.plugin_name)
        self.function: Callable[..., Any] = found.function
        self.argument_names = tuple(found.argnames)
        self.away = self.calls = self.errors = self.overruns = 0
        self.seconds_total = self.seconds_max = 0.0

    def count_overrun(self, seconds: float) -> None:
        """Count a call that did not return within `seconds`."""
        self.away += 1
        self.calls += 1
        self.overruns += 1
        self.seconds_total += seconds
        self.seconds_max = max(self.seconds_max, seconds)

    def count_late_return(self, seconds: float, overran_after: float, failed: bool) -> None:
        """Add the rest of a call that `count_overrun` has counted with `overran_after` seconds."""
        self.away -= 1
        self.errors += failed
        self.seconds_total += seconds - overran_after
        self.seconds_max = max(self.seconds_max, seconds)

    def figures(self, hook: str) -> HookFigures:
        """Copy the figures."""
        return HookFigures(
            hook, self.calls, self.errors, self.overruns, self.seconds_total, self.seconds_max
        )


class HookRun:
    """One call of a hook: its implementations in order, on one thread as long as none overruns.

    A worker thread calls the implementations, while the thread that waits for the outcomes watches
    the time. An implementation that overruns keeps its thread, and the run goes on with the next
    implementation on another thread. Both sides change the run under the executor's lock, which
    the worker takes once for each implementation.

    Args:
        call: the hook, and how to call it.
        implementations: in the order of their calls.
        lock: the executor's.
        workers: the threads on which a run goes on.
    """

    def __init__(
        self,
        call: HookCall,
        implementations: Sequence[Implementation],
        lock: threading.Lock,
        workers: ThreadPool,
    ) -> None:
        self._call = call
        self._implementations = implementations
        self._lock = lock
        self._workers = workers
        self._seconds = math.inf if call.seconds is None else call.seconds
        self._outcomes: list[HookOutcome] = []
        self._thread_number = 0  # of the thread that the run is on; earlier ones were given up
        self._place = 0  # of the implementation that is called, or is the next
        self._is_calling = False  # False until the thread has begun
        self._began_at = perf_counter()
        self._finished = threading.Event()
        if not implementations:
            self._finished.set()

    def is_finished(self) -> bool:
        """Whether no implementation is left to be called."""
        return self._finished.is_set()

    def work(self, thread_number: int = 0) -> None:
        """Call the implementations that are left. Raises nothing if the time is limited."""
        with self._lock:
            if thread_number != self._thread_number:
                return
            self._is_calling = True
            self._began_at = began_at = perf_counter()
            place = self._place
        implementations, count = self._implementations, len(self._implementations)
        is_last = place == count
        while not is_last:
            each = implementations[place]
            is_away = each.away > 0
            if is_away:
                error = HookOverran("an earlier call of it is not back yet")
                outcome: HookOutcome | None = HookOutcome(each.plugin_name, None, error)
            else:
                outcome = self._outcome(each)
            place += 1
            is_last, failed = place == count, False
            if outcome is not None:
                is_last = self._call.is_last(outcome) or is_last
                failed = outcome.error is not None
            now = perf_counter()
            with self._lock:
                if thread_number != self._thread_number:  # it overran, and the run has gone on
                    each.count_late_return(now - began_at, self._seconds, failed)
                    return
                if not is_away:
                    # Inline: a method call costs 0.2 us more for each implementation.
                    seconds = now - began_at
                    each.calls += 1
                    each.errors += failed
                    each.seconds_total += seconds
                    if seconds > each.seconds_max:
                        each.seconds_max = seconds
                if outcome is not None:
                    self._outcomes.append(outcome)
                self._place, self._began_at = place, now
                if is_last:
                    self._finished.set()
            began_at = now

    def outcomes(self) -> list[HookOutcome]:
        """Wait until the run has ended, and log what went wrong.

        Returns:
            The outcomes of the implementations that returned something, raised or overran.
        """
        while not self._finished.wait(self._seconds_left()):
            self._go_on_elsewhere()
        for name, _, error in self._outcomes:
            if error is None or isinstance(error, HookOverran):
                continue
            if isinstance(error, WrongType):
                _logger.error("plugin %r: hook %s %s; it is left out", name, self._call.hook, error)
            elif isinstance(error, MonitorError):  # raised on purpose: a traceback says no more
                _logger.error("plugin %r: hook %s raised: %s", name, self._call.hook, error)
            else:
                _logger.error("plugin %r: hook %s raised", name, self._call.hook, exc_info=error)
        return self._outcomes

    def _seconds_left(self) -> float:
        return self._began_at + self._seconds - perf_counter()

    def _go_on_elsewhere(self) -> None:
        """Give up the thread that the run is on, if it is late, and go on on another one."""
        with self._lock:
            if self._finished.is_set() or self._seconds_left() > 0:
                return
            self._thread_number += 1
            overdue = None
            if self._is_calling:  # if not, a busy machine has not let the thread begin
                overdue = self._implementations[self._place]
                overdue.count_overrun(self._seconds)
                self._place += 1
            self._is_calling = False
            self._began_at = perf_counter()
        if overdue is not None:
            name, hook, seconds = overdue.plugin_name, self._call.hook, self._seconds
            _logger.error(
                "plugin %r: hook %s is not back within %g s, and is not called again until it is",
                *(name, hook, seconds),
            )
            error = HookOverran(f"it was not back within {seconds:g} s")
            outcome = HookOutcome(name, None, error)
            self._outcomes.append(outcome)
            if self._place == len(self._implementations) or self._call.is_last(outcome):
                self._finished.set()
                return
        self._workers.run(partial(self.work, self._thread_number))

    def _outcome(self, each: Implementation) -> HookOutcome | None:
        """Call an implementation; None if it says nothing."""
        value: Any = None
        try:
            value = each.function(*[self._call.arguments[name] for name in each.argument_names])
            if value is None or (value := self._call.validate(value)) is None:
                return None
            return HookOutcome(each.plugin_name, value, None)
        except BaseException as error:  # also a SystemExit: it ends this call and no other
            if inspect.iscoroutine(value):
                value.close()  # nothing would await it
            if isinstance(error, KeyboardInterrupt) and self._call.seconds is None:
                raise  # on the caller's own thread
            return HookOutcome(each.plugin_name, None, error)


class HookExecutor:
    """Calls every implementation of a hook, one by one, on a thread that is not the caller's.

    An implementation that raises is logged. One that does not return within its time is logged,
    keeps its thread, and is not called again until it has returned. Wrappers are not called. Safe
    to call from any thread.

    Args:
        managers: where implementations are registered; the first manager's are called first.
    """

    def __init__(self, managers: Sequence[pluggy.PluginManager]) -> None:
        self._managers = managers
        self._lock = threading.Lock()
        self._known: dict[str, tuple[list[Any], list[Implementation]]] = {}
        self._workers = ThreadPool("monitor-hook")

    def close(self) -> None:
        """End the threads; each later call gets a thread of its own."""
        self._workers.close()

    def on_hook_thread(self) -> bool:
        """Whether the calling thread is one on which an implementation runs."""
        return self._workers.is_current()

    def implementations(self, hook: str) -> list[Implementation]:
        """List the implementations of a hook, in the order in which Pluggy would call them."""
        found: list[Any] = []
        for manager in self._managers:
            caller = getattr(manager.hook, hook, None)
            if caller is not None:
                found += reversed(caller.get_hookimpls())
        known = self._known.get(hook)
        if known is not None and known[0] == found:
            return known[1]
        with self._lock:
            old = {each.found: each for each in self._known.get(hook, ([], []))[1]}
            implementations = [
                old.get(each) or Implementation(each) for each in found if not is_wrapper(each)
            ]
            self._known[hook] = found, implementations
        return implementations

    def figures(self, hook: str) -> list[tuple[object, HookFigures]]:
        """Give each plugin that implements a hook, and the figures of its implementation."""
        implementations = self.implementations(hook)
        with self._lock:
            return [(each.found.plugin, each.figures(hook)) for each in implementations]

    def call(self, call: HookCall) -> list[HookOutcome]:
        """Call a hook; on the calling thread if the time is not limited.

        Returns:
            The outcomes of the implementations that returned something, raised or overran.
        """
        if call.seconds is not None:
            return self.begin(call)[0].outcomes()
        run = HookRun(call, self.implementations(call.hook), self._lock, self._workers)
        run.work()
        return run.outcomes()

    def begin(self, *calls: HookCall) -> list[HookRun]:
        """Begin to call hooks, one after the other on one thread.

        Waking a second thread takes longer than fifty implementations that return at once
        (benchmarks/hooks.py).
        """
        runs = [
            HookRun(call, self.implementations(call.hook), self._lock, self._workers)
            for call in calls
        ]
        if not all(run.is_finished() for run in runs):
            self._workers.run(partial(_work, runs))
        return runs


def _work(runs: Sequence[HookRun]) -> None:
    for run in runs:
        run.work()
