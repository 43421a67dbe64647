"""Calls the implementations of hooks on worker threads, each with a time limit."""

from __future__ import annotations

import inspect
import logging
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any, NamedTuple

import pluggy

from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import MonitorError
from ..domain.models import HookFigures
from .signatures import is_wrapper

_logger = logging.getLogger(__name__)


class HookOverran(Exception):
    """An implementation did not return within its time limit."""


class HookNotCalled(Exception):
    """An implementation was not called, because no thread could be started."""


# The hooks that see what backends have written, which no log of the monitor may have.
_SEE_LOGS = ("monitor_read_log", "monitor_backend_postmortem")


class WrongType(Exception):
    """A result has the wrong type. The message omits the value, which may be a secret."""

    def __init__(self, value: object, wanted: str) -> None:
        super().__init__(f"returned {type(value).__name__}, and should return {wanted}")


class HookOutcome(NamedTuple):
    """The result of one implementation, or its error.

    The error is what the implementation raised, or `HookOverran`, `HookNotCalled` or `WrongType`.
    """

    plugin_name: str
    value: Any
    error: BaseException | None


def validate_nothing(value: Any) -> Any:
    """Refuse any value, for hooks that return None."""
    raise WrongType(value, "nothing")


class HookCall(NamedTuple):
    """A hook to call, and its arguments.

    Attributes:
        seconds: the time limit of each implementation; None for no limit.
        validate: validates each result that is not None, within the same time limit. Returns the
            valid value, or None to ignore the result; raises `WrongType`.
        is_last: returns True if an outcome ends the call; later implementations are not called.
        ends_at: when the whole call ends, by the monotonic clock. The implementation that has not
            returned by then has overrun; later ones are not called.
        on_late_return: called on a worker thread after an implementation that overran has returned.
        key: calls with different keys do not prevent one another: an implementation that overran is
            not called again with this key until it has returned.
    """

    hook: str
    seconds: float | None
    arguments: Mapping[str, Any]
    validate: Callable[[Any], Any] = validate_nothing
    is_last: Callable[[HookOutcome], bool] = lambda outcome: False
    ends_at: float = math.inf
    on_late_return: Callable[[], object] = lambda: None
    key: str | None = None


class Implementation:
    """One implementation of a hook, and its figures, which the executor's lock protects.

    Attributes:
        record: the `pluggy.HookImpl`.
        overdue_calls: the keys of the calls that overran and have not returned yet. The
            implementation is not called with one of these keys.
    """

    def __init__(self, record: Any) -> None:
        self.record = record
        self.plugin_name = str(record.plugin_name)
        self.overdue_calls: list[str | None] = []
        self.calls = self.errors = self.overruns = 0
        self.seconds_total = self.seconds_max = 0.0

    def count(self, seconds: float, failed: bool = False) -> None:
        """Count a call that took `seconds`."""
        self.calls += 1
        self.errors += failed
        self.seconds_total += seconds
        self.seconds_max = max(self.seconds_max, seconds)

    def count_late_return(
        self, key: str | None, seconds: float, counted_seconds: float, failed: bool
    ) -> None:
        """Complete the figures of a call that overran.

        Args:
            key: the key of the call.
            seconds: how long the call took.
            counted_seconds: the part of it that was counted when the call overran.
            failed: whether the call raised, or returned an invalid value.
        """
        self.overdue_calls.remove(key)
        self.errors += failed
        self.seconds_total += seconds - counted_seconds
        self.seconds_max = max(self.seconds_max, seconds)

    def figures(self, hook: str) -> HookFigures:
        """Return a copy of the figures."""
        return HookFigures(
            hook, self.calls, self.errors, self.overruns, self.seconds_total, self.seconds_max
        )


class HookRun:
    """One call of a hook, which calls its implementations in order.

    A worker thread calls the implementations, and logs their errors. The thread that waits for the
    outcomes watches the time limit. An implementation that overruns keeps its worker thread, and
    another one calls the next implementation. `lock` protects the run; the worker takes it once per
    implementation.

    Attributes:
        finished: set when the run has ended.
        following: the run that the worker thread begins after this one.
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
        self._thread_number = 0  # of the current worker thread; earlier ones are abandoned
        self._counted_seconds: dict[int, float] = {}  # by the number of each abandoned thread
        self._index = 0  # of the current or next implementation
        self._is_calling = False  # whether the worker thread has started
        self._began_at = monotonic()
        self.finished = threading.Event()
        self.following: HookRun | None = None
        if not implementations:
            self.finished.set()

    def begin(self) -> None:
        """Begin to call the implementations on a worker thread, if that has not begun."""
        if not self._is_calling and not self.finished.is_set():
            self._start_worker()

    def _start_worker(self) -> None:
        try:
            self._workers.run(partial(self.work, self._thread_number))
        except RuntimeError as error:
            self._fail(error)

    def _fail(self, error: RuntimeError) -> None:
        """End this run and the following one, as no thread can be started."""
        with self._lock:
            self._thread_number += 1
            rest = self._implementations[self._index :]
        not_called = HookNotCalled(f"it was not called: {error}")
        for each in rest:
            outcome = HookOutcome(each.plugin_name, None, not_called)
            self._outcomes.append(outcome)
            self._log_error(outcome)
        self.finished.set()
        if self.following:
            self.following._fail(error)

    def work(self, thread_number: int = 0) -> None:
        """Call the remaining implementations. Raises nothing if the time is limited."""
        with self._lock:
            is_current = thread_number == self._thread_number
            if not is_current or self._is_calling or self.finished.is_set():
                return
            self._is_calling = True
            self._began_at = monotonic()
            remaining = self._implementations[self._index :]
        for each in remaining:
            began_at = monotonic()
            outcome = self._outcome_of(each)
            if not self._record(each, outcome, began_at, thread_number):
                break
        if self._thread_number == thread_number and self.following:
            self.following.work()

    def _record(
        self,
        each: Implementation,
        outcome: HookOutcome | None,
        began_at: float,
        thread_number: int,
    ) -> bool:
        """Record an outcome; return whether the calling thread calls the next implementation."""
        is_last = failed = is_overdue = False
        if outcome is not None:
            self._log_error(outcome)
            is_last = self._call.is_last(outcome)
            failed = outcome.error is not None
            is_overdue = isinstance(outcome.error, HookOverran)  # an earlier call has not returned
        now = monotonic()
        with self._lock:
            is_current = thread_number == self._thread_number
            if is_current:
                if not is_overdue:
                    each.count(now - began_at, failed)
                if outcome is not None:
                    self._outcomes.append(outcome)
                self._index += 1
                self._began_at = now
                if is_last or self._index == len(self._implementations):
                    self.finished.set()
            else:  # the call overran; another thread has called the next implementations
                counted_seconds = self._counted_seconds[thread_number]
                each.count_late_return(self._call.key, now - began_at, counted_seconds, failed)
        if not is_current:
            self._call.on_late_return()
        return is_current and not self.finished.is_set()

    def wait(self, until: float = math.inf) -> bool:
        """Wait for the end of the run, up to a time by the monotonic clock.

        Returns:
            Whether the run has ended.
        """
        while not self.finished.wait(min(self._overruns_at(), until) - monotonic()):
            if monotonic() >= until:
                return False
            self._skip_overdue()
        return True

    def abandon(self) -> None:
        """End the run now: an implementation that has not returned has overrun."""
        with self._lock:
            self._call = self._call._replace(ends_at=monotonic())
        self._skip_overdue()

    def outcomes(self) -> list[HookOutcome]:
        """Wait for the end of the run.

        Returns:
            The outcomes of the implementations that returned a value, raised, overran, or could not
            be called.
        """
        self.wait()
        return self._outcomes

    def _overruns_at(self) -> float:
        return min(self._began_at + self._seconds, self._call.ends_at)

    def _skip_overdue(self) -> None:
        """Skip the current implementation if it is overdue: continue on another thread."""
        with self._lock:
            now = monotonic()
            if self.finished.is_set() or now < self._overruns_at():
                return
            seconds = min(self._seconds, now - self._began_at)
            overdue = None
            if self._is_calling:  # else the thread has not started yet, as the machine is busy
                overdue = self._implementations[self._index]
                overdue.overdue_calls.append(self._call.key)
                overdue.overruns += 1
                overdue.count(seconds)
                self._counted_seconds[self._thread_number] = seconds
                self._index += 1
            self._thread_number += 1
            self._is_calling = False
            self._began_at = now
            is_last = self._index == len(self._implementations) or now >= self._call.ends_at
        if overdue is not None:
            message = "plugin %r: hook %s did not return within %.2g s; not called until it returns"
            _logger.error(message, overdue.plugin_name, self._call.hook, seconds)
            error = HookOverran(f"it was not back within {seconds:.2g} s")
            outcome = HookOutcome(overdue.plugin_name, None, error)
            self._outcomes.append(outcome)
            is_last = self._call.is_last(outcome) or is_last
        if is_last:
            self.finished.set()
        else:
            self._start_worker()

    def _log_error(self, outcome: HookOutcome) -> None:
        name, _, error = outcome
        if error is None or isinstance(error, HookOverran):
            return
        hook = self._call.hook
        if isinstance(error, HookNotCalled):
            _logger.error("plugin %r: hook %s: %s", name, hook, error)
        elif hook in _SEE_LOGS and not isinstance(error, WrongType):
            places = [  # without the lines of code, which `format_tb` has
                f'\n  File "{each.filename}", line {each.lineno}, in {each.name}'
                for each in traceback.extract_tb(error.__traceback__)
            ]
            message = "plugin %r: hook %s raised %s; its text is left out, as it may quote a log%s"
            _logger.error(message, name, hook, type(error).__name__, "".join(places))
        elif isinstance(error, WrongType):
            _logger.error("plugin %r: hook %s %s; ignored", name, hook, error)
        elif isinstance(error, MonitorError):  # its message is enough; no traceback
            _logger.error("plugin %r: hook %s raised: %s", name, hook, error)
        else:
            _logger.error("plugin %r: hook %s raised", name, hook, exc_info=error)

    def _outcome_of(self, each: Implementation) -> HookOutcome | None:
        """Call an implementation, and return its outcome; None if it returned None."""
        if self._call.key in each.overdue_calls:
            error = HookOverran("an earlier call of it is not back yet")
            return HookOutcome(each.plugin_name, None, error)
        value: Any = None
        try:
            arguments = [self._call.arguments[name] for name in each.record.argnames]
            value = each.record.function(*arguments)
            if value is None or (value := self._call.validate(value)) is None:
                return None
            return HookOutcome(each.plugin_name, value, None)
        except BaseException as error:  # including SystemExit, which must not end the thread
            if inspect.iscoroutine(value):
                value.close()  # nothing would await it
            if isinstance(error, KeyboardInterrupt) and self._call.seconds is None:
                raise  # the calling thread is the caller's
            return HookOutcome(each.plugin_name, None, error)


class HookExecutor:
    """Calls the implementations of a hook one by one on a worker thread. Thread-safe.

    Errors are logged. An implementation that does not return within its time limit is logged,
    keeps its thread, and is not called again until it has returned. Wrappers are not called.

    Args:
        managers: the plugin managers; implementations of the first one are called first.
    """

    def __init__(self, managers: Sequence[pluggy.PluginManager]) -> None:
        self._managers = managers
        self._lock = threading.Lock()
        self._known: dict[str, tuple[list[Any], list[Implementation]]] = {}
        self._workers = ThreadPool("monitor-hook")

    def close(self) -> None:
        """End the idle worker threads; each later call starts a new thread."""
        self._workers.close()

    def on_hook_thread(self) -> bool:
        """Whether the calling thread is a worker thread, on which an implementation runs."""
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
            old = {each.record: each for each in self._known.get(hook, ([], []))[1]}
            implementations = [
                old.get(each) or Implementation(each) for each in found if not is_wrapper(each)
            ]
            self._known[hook] = found, implementations
        return implementations

    def figures(self, hook: str) -> list[tuple[object, HookFigures]]:
        """List the plugins that implement a hook, with the figures of the implementation."""
        implementations = self.implementations(hook)
        with self._lock:
            return [(each.record.plugin, each.figures(hook)) for each in implementations]

    def call(self, call: HookCall) -> list[HookOutcome]:
        """Call a hook, and return `HookRun.outcomes`.

        Without a time limit, the implementations run on the calling thread.
        """
        if call.seconds is not None:
            return self.begin(call)[0].outcomes()
        run = self._make_run(call, self.implementations(call.hook))
        run.work()
        return run.outcomes()

    def call_some(
        self, implementations: Sequence[Implementation], call: HookCall
    ) -> list[HookOutcome]:
        """Call some implementations of a hook, with a time limit; return `HookRun.outcomes`."""
        run = self._make_run(call, implementations)
        run.begin()
        return run.outcomes()

    def begin(self, *calls: HookCall) -> list[HookRun]:
        """Begin to call hooks, in order, on one worker thread.

        Waking a second thread takes longer than fifty implementations that return immediately
        (benchmarks/hooks.py).
        """
        runs = [self._make_run(call, self.implementations(call.hook)) for call in calls]
        begun = [run for run in runs if not run.finished.is_set()]
        for run, following in pairwise(begun):
            run.following = following
        if begun:
            begun[0].begin()
        return runs

    def _make_run(self, call: HookCall, implementations: Sequence[Implementation]) -> HookRun:
        return HookRun(call, implementations, self._lock, self._workers)
