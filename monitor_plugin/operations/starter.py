"""Starts a model through its host, and waits until a backend of the model is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import BackendUnreadable, ModelNotLoaded, StartFailed
from ..domain.models import State
from ..plugins.hooks import Hooks, HostAnswer
from ..readings.model_reader import ModelReader
from .known_models import KnownModels

_POLL_SECONDS = 0.2
# How long a model must be at rest before its start has failed: what a host lists may be old.
_REST_SECONDS = 2.0
_AT_REST = ("stopped", "failed", "exited")


class ModelStarter:
    """Starts models through their hosts. Safe to call from any thread.

    Args:
        registry: the registered backends.
        exit_recorder: describes how backends have ended.
        model_reader: reads the model until it is ready.
        known_models: what hosts say of the model.
        hooks: start the model.
        thread_pool: runs the call of the hook, which may block.
        read_output: reads the last output of a model's last process; None if it is not known.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        model_reader: ModelReader,
        known_models: KnownModels,
        hooks: Hooks,
        thread_pool: ThreadPool,
        read_output: Callable[[str], str | None],
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._model_reader = model_reader
        self._known_models = known_models
        self._hooks = hooks
        self._thread_pool = thread_pool
        self._read_output = read_output
        self._lock = threading.Lock()
        self._starts: dict[str, threading.Event] = {}  # an event of each model ends its start
        self._closing = False

    def start(self, model: str, seconds: float, *, backends: int = 1, again: bool = False) -> None:
        """Start a model, and wait until it is loaded: some of its backends are ready.

        A backend is ready if its state is READY, or if it has answered and has no `Status`.

        Args:
            model: the model's name.
            seconds: the maximum time to wait.
            backends: how many backends must be ready.
            again: whether to ask the host although a backend of the model is registered.

        Raises:
            StartFailed: no host knows the model, or it did not become ready.
        """
        cancelled = threading.Event()
        with self._lock:
            if self._closing:
                raise StartFailed(model, "the monitor is closing")
            self._starts[model] = cancelled
        try:
            self._start(model, seconds, backends, again, cancelled)
        finally:
            with self._lock:
                del self._starts[model]

    def cancel(self, model: str) -> None:
        """End the wait of a start, which then fails. What the host does is not undone."""
        with self._lock:
            if model in self._starts:
                self._starts[model].set()

    def close(self) -> None:
        """End the waits of all starts, and refuse further ones."""
        with self._lock:
            self._closing = True
            for cancelled in self._starts.values():
                cancelled.set()

    def _start(
        self, model: str, seconds: float, backends: int, again: bool, cancelled: threading.Event
    ) -> None:
        deadline = time.monotonic() + seconds
        answer: Future[HostAnswer | None] | None = None
        if again or not self._registry.records(model):
            (answer,) = self._thread_pool.map(
                lambda name: self._hooks.start_model(name, seconds), [model], 1
            )
        rested_at: float | None = None
        while True:
            asking = answer is not None and not answer.done()
            if not asking and self._count_ready(model) >= backends:
                return
            if answer is not None and answer.done():
                self._check(model, answer.result())
            reason = None if asking else self._reason_for_rest(model)
            now = time.monotonic()
            rested_at = None if reason is None else rested_at or now
            if reason is not None and rested_at is not None and now >= rested_at + _REST_SECONDS:
                raise self._failure(model, reason)
            if now >= deadline:
                raise self._failure(model, self._reason_for_timeout(model, seconds))
            if cancelled.wait(min(_POLL_SECONDS, deadline - now)):
                raise StartFailed(model, "a shutdown by force, or the end of the monitor, ended it")

    def _count_ready(self, model: str) -> int:
        """Read the model, and count its backends that are ready."""
        with suppress(ModelNotLoaded, BackendUnreadable):
            self._model_reader.read(model)
        return sum(map(_is_ready, self._registry.records(model)))

    def _check(self, model: str, answer: HostAnswer | None) -> None:
        """Raise `StartFailed` if the host did not start the model, or if there is no such host."""
        if answer is None:
            if self._registry.records(model):
                return
            why = "no host of this monitor knows how to start it"
            if ended := self._exit_recorder.describe_last_exit(model):
                why += f"; {ended}"
            raise StartFailed(model, why)
        if not answer.under_way:
            why = answer.error or "its host could not start it"
            raise self._failure(model, f"plugin {answer.plugin_name!r}: {why}")

    def _reason_for_rest(self, model: str) -> str | None:
        """Return why no process of the model runs or will run; None if one does, or may."""
        records = self._registry.records(model)
        if records:
            if all(each.state is State.ERROR for each in records):
                return f"its backend (process {records[-1].backend.pid}) reports the state ERROR"
            return None
        known = self._known_models.find(model)
        ended = self._exit_recorder.describe_last_exit(model)
        if known is None:
            return ended
        if known.state in _AT_REST:
            facts = (f"its host says {known.state}", known.detail, ended)
            return "; ".join(each for each in facts if each)
        return None

    def _reason_for_timeout(self, model: str, seconds: float) -> str:
        records = self._registry.records(model)
        within = f"within {seconds:g} s"
        if records:
            state = records[-1].state
            what = "has not answered" if state is None else f"is {state.name}"
            return f"its backend (process {records[-1].backend.pid}) {what} {within}"
        return f"no backend of it was registered {within}"

    def _failure(self, model: str, reason: str) -> StartFailed:
        return StartFailed(model, reason, self._read_output(model))


def _is_ready(record: Record) -> bool:
    """Whether a backend is ready. A BUSY one was ready before; one that hangs now was so too."""
    return record.answered and record.state in (None, State.READY, State.BUSY)
