"""Stops a backend for a watchdog, restarts its model, or only tells of it.

A hook file that finds something wrong with backends makes one `Watchdog`, which reads the settings
ACTION, PROTECT and RESTARTS_PER_HOUR of the file. After each sweep the file calls `act` for each
backend with which something is wrong, and then `end_sweep`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..domain.errors import StartFailed
from ..domain.models import Backend
from ..hookspecs import Monitor
from .background_stops import BackgroundStops
from .settings import HookSettings, count, one_of, patterns

_HOUR_SECONDS = 3600.0
_MAX_PAUSE_SECONDS = 600.0


@dataclass
class _History:
    """The restarts of a model.

    Attributes:
        began_at: when each restart within the last hour began.
        next_at: when the next restart may begin, at the earliest.
        unwell_at: when something was last wrong with the model, or none of its backends ran.
        is_running: whether a restart is running.
        gave_up: whether the model is left as it is.
        stopped: the backend that the last restart has stopped, if the model did not start again.
    """

    began_at: list[float] = field(default_factory=list)
    next_at: float = 0.0
    unwell_at: float = 0.0
    is_running: bool = False
    gave_up: bool = False
    stopped: Backend | None = None


class Watchdog:
    """Stops backends, restarts their models, or only tells of them, as the settings say.

    Each action is reported by `Monitor.report_watchdog`, with the stem of the hook file as the name
    of the watchdog. `stop` and `restart` run in the background. One that fails, such as a stop that
    another hook refuses, is logged once and tried again every minute.

    `tell` reports a condition when it begins, and again only after it has ended. Conditions of
    models that PROTECT names are reported likewise. So are, with ACTION=restart, those of a model
    that no host can start: a backend that cannot be started again is not stopped.

    A model is restarted at most RESTARTS_PER_HOUR times within an hour, with a pause after each
    restart, which is twice as long each time. A restart whose start fails counts, and is followed
    by another start, unless a shutdown by force has ended the start. After the last one the model
    is left as it is, which is reported once (`gave_up`), until nothing has been wrong with it for
    `well_seconds`.

    Args:
        settings: the settings of the hook file.
        logger: the logger of the hook file.
        pause_seconds: the pause after the first restart; later ones last at most 10 minutes.
        well_seconds: how long a backend of the model must run, with nothing wrong.

    Attributes:
        stops: makes the stops. A hook file assigns its methods `monitor_started` and
            `monitor_closing` to variables of the same names.
        action: the setting ACTION: `stop`, `restart` or `tell`.
    """

    def __init__(
        self,
        settings: HookSettings,
        logger: logging.Logger,
        *,
        pause_seconds: float = 5.0,
        well_seconds: float = 600.0,
    ) -> None:
        self.stops = BackgroundStops(logger)
        self._name = settings.stem
        self._logger = logger
        self._pause_seconds = pause_seconds
        self._well_seconds = well_seconds
        actions = one_of("stop", "restart", "tell")
        self.action = settings.get("ACTION", actions, "stop, restart or tell", "stop")
        wanted = "patterns of models, as llama-*,embed"
        self._protected = settings.get("PROTECT", patterns, wanted, ())
        self._restarts_per_hour = settings.get(
            "RESTARTS_PER_HOUR", count, "how often a model is restarted at most, as 5", 5
        )
        self._lock = threading.Lock()
        self._told: set[Hashable] = set()  # conditions that were told, and have not ended
        self._conditions: set[Hashable] = set()  # found in this sweep
        self._unwell: set[str] = set()  # the models with a condition in this sweep
        self._histories: dict[str, _History] = {}

    def may_act(self, model: str) -> bool:
        """Whether the settings allow to stop or restart this model, and not only to tell of it."""
        return self.action != "tell" and not self._is_protected(model)

    def _is_protected(self, model: str) -> bool:
        return any(fnmatchcase(model, each) for each in self._protected)

    def act(
        self,
        backend: Backend,
        why: str,
        *,
        force: bool = False,
        spare_busy: bool = False,
        condition: Hashable = None,
    ) -> bool:
        """Do what the settings say with a backend, with which something is wrong in this sweep.

        Args:
            backend: the backend.
            why: what is wrong, as a clause, such as `it was idle for 3605 s`.
            force: see `Monitor.shutdown`.
            spare_busy: see `Monitor.shutdown`.
            condition: identifies what is wrong, so that it is told once; None: the backend.

        Returns:
            Whether a stop or a restart of the backend has begun.
        """
        condition = backend if condition is None else condition
        with self._lock:
            self._conditions.add(condition)
            self._unwell.add(backend.model)
        if self._is_protected(backend.model):
            self._tell(condition, backend, f"{why}; it is left as it is, because PROTECT names it")
            return False
        if self.action == "tell":
            self._tell(condition, backend, why)
            return False
        if self.action == "restart":

            def restart(monitor: Monitor, is_retry: bool, history: _History) -> None:
                if obstacle := _obstacle_to_start(monitor, backend.model):
                    self._tell(condition, backend, f"{why}; it is not restarted: {obstacle}")
                    return
                if not is_retry:
                    self._report(backend, "restart", why)
                with self._counted(monitor, backend, history):
                    monitor.restart_model(backend.model, force, backend.pid, spare_busy=spare_busy)

            return self._begin_restart(backend, why, restart)

        def stop(monitor: Monitor, is_retry: bool) -> None:
            if not is_retry:
                self._report(backend, "stop", why)
            monitor.shutdown(backend.model, force, backend.pid, spare_busy=spare_busy)

        return self.stops.begin(backend, stop)

    def end_sweep(self) -> None:
        """End a sweep, after the calls of `act`: start models whose last start failed."""
        monitor, now = self.stops.monitor, time.monotonic()
        if monitor is None:
            return
        loaded = {each.model for each in monitor.backends()}
        stopped = []
        with self._lock:
            self._told &= self._conditions
            unwell, self._unwell, self._conditions = self._unwell, set(), set()
            for model, history in list(self._histories.items()):
                if model in loaded and not history.is_running:
                    history.stopped = None
                if model in unwell or model not in loaded:
                    history.unwell_at = now
                elif now - history.unwell_at >= self._well_seconds:
                    history.gave_up = False
                if history.stopped:
                    stopped.append(history.stopped)
                began_at = [each for each in history.began_at if now - each < _HOUR_SECONDS]
                history.began_at = began_at
                if not (began_at or history.is_running or history.gave_up or history.stopped):
                    del self._histories[model]
        for backend in stopped:
            self._start_again(backend)

    def _start_again(self, backend: Backend) -> None:
        why = "its last start failed"

        def start(monitor: Monitor, is_retry: bool, history: _History) -> None:
            self._report(backend, "restart", why)
            with self._counted(monitor, backend, history):
                monitor.start_model(backend.model)

        self._begin_restart(backend, why, start)

    def _begin_restart(
        self, backend: Backend, why: str, run: Callable[[Monitor, bool, _History], None]
    ) -> bool:
        """Begin a restart of a backend's model, unless there were too many of them."""
        now = time.monotonic()
        with self._lock:
            history = self._histories.setdefault(backend.model, _History(unwell_at=now))
            if history.is_running or history.gave_up:
                return False
            recent = sum(now - each < _HOUR_SECONDS for each in history.began_at)
            history.gave_up = recent >= self._restarts_per_hour
            if not history.gave_up and now < history.next_at:
                return False
            history.is_running = not history.gave_up
        if history.gave_up:
            times = "once" if recent == 1 else f"{recent} times"
            reason = f"{why}; it was restarted {times} within the last hour"
            self._report(backend, "gave_up", reason)
            return False

        def run_and_end(monitor: Monitor, is_retry: bool) -> None:
            try:
                run(monitor, is_retry, history)
            finally:
                history.is_running = False

        if self.stops.begin(backend, run_and_end, "restarted"):
            return True
        history.is_running = False
        return False

    @contextlib.contextmanager
    def _counted(self, monitor: Monitor, backend: Backend, history: _History) -> Iterator[None]:
        """Count a restart, unless it fails before the backend was stopped."""
        began_at = time.monotonic()
        with self._lock:
            history.began_at.append(began_at)
        try:
            yield
        except StartFailed as error:
            # A client's shutdown by force is not undone.
            history.stopped = None if error.is_cancelled else backend
            level = logging.DEBUG if self.stops.closed else logging.ERROR
            self._logger.log(level, "a restart failed: %s", error)
        except Exception:
            if backend in monitor.backends():
                with self._lock:
                    history.began_at.remove(began_at)
            raise
        finally:
            doubled = self._pause_seconds * 2.0 ** max(0, len(history.began_at) - 1)
            history.next_at = time.monotonic() + min(_MAX_PAUSE_SECONDS, doubled)

    def _tell(self, condition: Hashable, backend: Backend, why: str) -> None:
        with self._lock:
            if condition in self._told:
                return
            self._told.add(condition)
        self._report(backend, "tell", why)

    def _report(self, backend: Backend, action: str, why: str) -> None:
        if self.stops.monitor:
            self.stops.monitor.report_watchdog(backend, self._name, action, why)


def _obstacle_to_start(monitor: Monitor, model: str) -> str | None:
    """Return why no host can start a model; None if a host may."""
    hooks = {figures.name for plugin in monitor.plugins() for figures in plugin.hooks}
    if "monitor_start_model" not in hooks:
        return "no host of this monitor can start models (hook monitor_start_model)"
    if "monitor_list_models" in hooks:
        known = next((each for each in monitor.known_models() if each.model == model), None)
        if known is None:
            return "no host lists this model (hook monitor_list_models)"
        if not known.can_start:
            return "its host cannot start it (hook monitor_list_models)"
    return None
