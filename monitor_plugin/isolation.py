"""Calls implementations of hooks so that none can cost more than its time, or another its turn."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pluggy

from .errors import MonitorError
from .plugins import is_wrapper

_logger = logging.getLogger(__name__)


class HookOverran(Exception):
    """An implementation is not back in its time."""


class Outcome(NamedTuple):
    """What one implementation gave: a value, or the error that it raised or `HookOverran`."""

    plugin_name: str
    value: Any
    error: BaseException | None


class Isolation:
    """Calls every implementation of a hook, one by one, each on a thread of its own.

    One that raises is logged. One that is not back in time is left behind, logged, and not called
    again until it has come back. Wrappers are left out. Safe to call from any thread.

    Args:
        managers: where implementations are registered; the first manager's are called first.
    """

    def __init__(self, managers: Sequence[pluggy.PluginManager]) -> None:
        self._managers = managers
        self._lock = threading.Lock()
        self._overrunning: set[int] = set()
        self._thread = threading.local()

    def on_hook_thread(self) -> bool:
        """Whether the calling thread is one on which an implementation runs."""
        return getattr(self._thread, "is_hook", False)

    def implementations(self, hook: str) -> list[Any]:
        """List the implementations of a hook, in the order in which Pluggy would call them."""
        found = []
        for manager in self._managers:
            caller = getattr(manager.hook, hook, None)
            if caller is not None:
                found += [each for each in reversed(caller.get_hookimpls()) if not is_wrapper(each)]
        return found

    def call_each(
        self, hook: str, seconds: float | None, arguments: Mapping[str, Any]
    ) -> Iterator[Outcome]:
        """Call the implementations as the iterator is drawn.

        Args:
            hook: the hook's name.
            seconds: how long each may take; None for no bound, on the calling thread.
            arguments: what the hook's spec names.
        """
        for implementation in self.implementations(hook):
            name = str(implementation.plugin_name)
            call = _Call(implementation, [arguments[each] for each in implementation.argnames])
            if seconds is None:
                call.run()
            elif not self._run_on_thread(hook, call, seconds):
                yield Outcome(name, None, HookOverran(f"it was not back within {seconds:g} s"))
                continue
            if isinstance(
                call.error, MonitorError
            ):  # said on purpose: where it arose tells nothing
                _logger.error("plugin %r: hook %s raised: %s", name, hook, call.error)
            elif call.error is not None:
                _logger.error("plugin %r: hook %s raised", name, hook, exc_info=call.error)
            yield Outcome(name, call.value, call.error)

    def _run_on_thread(self, hook: str, call: _Call, seconds: float) -> bool:
        """Run a call; False where it is not back in time, or an earlier one is not yet."""
        key = id(call.implementation)
        with self._lock:
            if key in self._overrunning:
                return False
        done = threading.Event()

        def run() -> None:
            self._thread.is_hook = True
            try:
                call.run()
            except BaseException as error:  # a cancelled task's, say: it ends this call alone
                call.error = error
            with self._lock:
                done.set()
                self._overrunning.discard(key)

        threading.Thread(target=run, name=f"monitor-{hook}", daemon=True).start()
        if done.wait(seconds):
            return True
        with self._lock:
            if done.is_set():
                return True
            self._overrunning.add(key)
        _logger.error(
            "plugin %r: hook %s is not back within %g s, and is not called again until it is",
            call.implementation.plugin_name,
            hook,
            seconds,
        )
        return False


class _Call:
    def __init__(self, implementation: Any, arguments: list[Any]) -> None:
        self.implementation = implementation
        self.arguments = arguments
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.implementation.function(*self.arguments)
        except (Exception, SystemExit) as error:  # whatever it is, the others still run
            self.error = error
        if inspect.iscoroutine(self.value):
            self.value.close()  # an `async def`: its type is wrong, and nothing would await it
