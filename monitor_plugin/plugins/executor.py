"""Calls implementations of hooks so that none can cost more than its time, or another its turn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pluggy

from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import MonitorError
from ..domain.models import HookFigures
from .hook_run import HookArguments, HookOutcome, HookOverran, HookRun, Implementation, WrongType
from .manager import is_wrapper

_logger = logging.getLogger(__name__)


def nothing(value: Any) -> Any:
    """Take nothing but None, for a hook that only tells."""
    raise WrongType(value, "nothing")


def never(outcome: HookOutcome) -> bool:
    """Go on after every outcome."""
    return False


class HookCall(NamedTuple):
    """A hook that is to be called: see `Isolation.call`."""

    hook: str
    seconds: float
    arguments: Mapping[str, Any]
    check: Callable[[Any], Any] = nothing
    ends: Callable[[HookOutcome], bool] = never


class _Plan(NamedTuple):
    """The implementations of a hook, as Pluggy has them and as they are called."""

    found: list[Any]
    implementations: list[Implementation]
    shapes: list[tuple[str, ...]]

    def question(
        self,
        arguments: Mapping[str, Any],
        check: Callable[[Any], Any],
        ends: Callable[[HookOutcome], bool],
    ) -> HookArguments:
        return HookArguments([[arguments[n] for n in names] for names in self.shapes], check, ends)


class HookExecutor:
    """Calls every implementation of a hook, one by one, on a thread that is not the caller's.

    One thread calls them in turn, as long as none overruns. One that raises is logged. One that is
    not back in time is left behind with its thread, logged, and not called again until it has come
    back; the next ones are called on another thread. Wrappers are left out. Safe to call from any
    thread.

    Args:
        managers: where implementations are registered; the first manager's are called first.
    """

    def __init__(self, managers: Sequence[pluggy.PluginManager]) -> None:
        self._managers = managers
        self._lock = threading.Lock()
        self._plans: dict[str, _Plan] = {}
        self._workers = ThreadPool("monitor-hook")

    def close(self) -> None:
        """End the threads; each call after that has one of its own."""
        self._workers.close()

    def on_hook_thread(self) -> bool:
        """Whether the calling thread is one on which an implementation runs."""
        return self._workers.is_current()

    def implementations(self, hook: str) -> list[Implementation]:
        """List the implementations of a hook, in the order in which Pluggy would call them."""
        return self._plan(hook).implementations

    def figures(self, hook: str) -> list[tuple[object, HookFigures]]:
        """Give each plugin that implements a hook, and how it fared."""
        known = self._plan(hook).implementations
        with self._lock:
            return [(each.found.plugin, each.figures(hook)) for each in known]

    def _plan(self, hook: str) -> _Plan:
        found: list[Any] = []
        for manager in self._managers:
            caller = getattr(manager.hook, hook, None)
            if caller is not None:
                found += reversed(caller.get_hookimpls())
        plan = self._plans.get(hook)
        if plan is not None and plan.found == found:
            return plan
        with self._lock:
            old = self._plans.get(hook, _Plan([], [], []))
            known = {each.found: each for each in old.implementations}
            shapes = [*old.shapes]  # only added to, as calls under way know them by their places
            implementations = []
            for each in found:
                if is_wrapper(each):
                    continue
                names = tuple(each.argnames)
                if names not in shapes:
                    shapes.append(names)
                new = Implementation(each, shapes.index(names))
                implementations.append(known.get(each, new))
            plan = self._plans[hook] = _Plan(found, implementations, shapes)
            return plan

    def call(
        self,
        hook: str,
        seconds: float | None,
        arguments: Mapping[str, Any],
        check: Callable[[Any], Any] = nothing,
        ends: Callable[[HookOutcome], bool] = never,
    ) -> list[HookOutcome]:
        """Call the implementations, and give the outcomes of those that said something.

        Args:
            hook: the hook's name.
            seconds: how long each may take; None for no bound, on the calling thread.
            arguments: what the hook's spec names.
            check: gives an answer as it is used, None for one that says nothing; or raises.
            ends: whether those after an outcome are not called.
        """
        plan = self._plan(hook)
        if not plan.implementations:
            return []
        if seconds is not None:
            (outcomes,) = self.begin(HookCall(hook, seconds, arguments, check, ends))
            return outcomes()

        def ends_too(outcome: HookOutcome) -> bool:
            return isinstance(outcome.error, KeyboardInterrupt) or ends(outcome)

        question = plan.question(arguments, check, ends_too)
        turns = self._turns(plan.implementations, question)
        turns.work()
        turns.wait(0)
        if turns.outcomes and isinstance(error := turns.outcomes[-1].error, KeyboardInterrupt):
            raise error  # a Ctrl-C is the caller's
        return self._logged(hook, turns.outcomes)

    def begin(self, *asked: HookCall) -> list[Callable[[], list[HookOutcome]]]:
        """Begin to call hooks, one after the other; each function waits for one's outcomes.

        One thread does it all, as switching to another takes longer than many implementations do.
        """
        waiting: list[Callable[[], list[HookOutcome]]] = []
        begun = []
        for each in asked:
            plan = self._plan(each.hook)
            if not plan.implementations:
                waiting.append(list)
                continue
            question = plan.question(each.arguments, each.check, each.ends)
            turns = self._turns(plan.implementations, question)
            begun.append(turns)
            waiting.append(partial(self._follow, each, turns, question))
        if begun:
            self._workers.run(partial(_work, begun))
        return waiting

    def _turns(self, implementations: Sequence[Implementation], question: HookArguments) -> HookRun:
        return HookRun(implementations, question, self._lock)

    def _follow(
        self, asked: HookCall, turns: HookRun, question: HookArguments
    ) -> list[HookOutcome]:
        """Watch the turns, on one thread after the other, until all had theirs."""
        outcomes: list[HookOutcome] = []
        while True:
            overdue = turns.wait(asked.seconds)
            outcomes += turns.outcomes
            if overdue:
                error = HookOverran(f"it was not back within {asked.seconds:g} s")
                outcomes.append(HookOutcome(overdue.plugin_name, None, error))
                _logger.error(
                    "plugin %r: hook %s is not back within %g s, "
                    "and is not called again until it is",
                    *(overdue.plugin_name, asked.hook, asked.seconds),
                )
            if not turns.left or (outcomes and question.ends(outcomes[-1])):
                return self._logged(asked.hook, outcomes)
            turns = self._turns(turns.left, question)
            self._workers.run(turns.work)

    def _logged(self, hook: str, outcomes: list[HookOutcome]) -> list[HookOutcome]:
        for name, _, error in outcomes:
            if error is None or isinstance(error, HookOverran):
                continue
            if isinstance(error, WrongType):
                _logger.error("plugin %r: hook %s %s; it is left out", name, hook, error)
            elif isinstance(error, MonitorError):  # on purpose: where it arose tells nothing
                _logger.error("plugin %r: hook %s raised: %s", name, hook, error)
            else:
                _logger.error("plugin %r: hook %s raised", name, hook, exc_info=error)
        return outcomes


def _work(begun: Sequence[HookRun]) -> None:
    for turns in begun:
        turns.work()
