"""Starts a model through its host, and waits until a backend of the model is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from ..backends.exits import ExitRecorder
from ..backends.refusals import Refusals
from ..backends.registry import Record, Registry
from ..concurrency.group_lock import Cancelled
from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import BackendUnreadable, ModelNotLoaded, StartFailed
from ..domain.known_models import KnownModel
from ..domain.models import State, describe_process
from ..plugins.hooks import Hooks, StartRequest
from ..readings.model_reader import ModelReader
from .known_models import KnownModels

_POLL_SECONDS = 0.1
# How long a model must be at rest until its start counts as failed. A host's list is up to a second
# old, and a host that restarts a process may register the next process a moment after the end.
_REST_SECONDS = 2.0
_AT_REST = ("stopped", "failed", "exited")
# A host may restart a program that ends at once for ever: supervisord does so with `startsecs=0`,
# circus always. The limits let supervisord give up first: by default it tries a start 4 times, with
# pauses of 6 s in all. The pause of circus (`check_delay`) is 5 s by default.
_MAX_ENDS = 5
_MAX_PAUSE_SECONDS = 10.0


class ModelStarter:
    """Starts models through their hosts. Safe to call from any thread.

    Args:
        registry: the registered backends.
        exit_recorder: describes how backends have ended.
        refusals: knows the processes of a model that could not be registered.
        model_reader: reads the model until it is ready.
        known_models: what hosts say of the model.
        hooks: start the model.
        thread_pool: reads the model, which may take as long as a call of `Status` may.
        read_output: reads the last output of a model's process. The process runs, or the number of
            its end is greater than the second argument. None if no output is known.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        refusals: Refusals,
        model_reader: ModelReader,
        known_models: KnownModels,
        hooks: Hooks,
        thread_pool: ThreadPool,
        read_output: Callable[[str, int], str | None],
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._refusals = refusals
        self._model_reader = model_reader
        self._known_models = known_models
        self._hooks = hooks
        self._thread_pool = thread_pool
        self._read_output = read_output

    def may_start(self) -> bool:
        """Whether a plugin implements the hook that starts models."""
        return self._hooks.may_start_model()

    def is_loaded(self, model: str) -> bool:
        """Whether a backend of the model is ready, and its host is not stopping it."""
        records = self._registry.records(model)
        return any(map(_is_ready, records)) and not self._is_stopping(model)

    def start(
        self,
        model: str,
        seconds: float,
        deadline: float,
        cancelled: threading.Event,
        *,
        backends: int = 1,
        again: bool = False,
    ) -> None:
        """Start a model, and wait until enough of its backends are ready.

        The host is asked if no backend of the model is registered, or if the host says that the
        model is stopped. In that case a backend may still be ready while the host stops it.

        A backend is ready if its state is READY or BUSY, or if it has answered and has no `Status`.
        The state is the last known one, so that a backend that hangs now and was READY is ready.

        Args:
            model: the model's name.
            seconds: the maximum time, for messages.
            deadline: when the maximum time is over (monotonic seconds).
            cancelled: ends the wait when it is set. What the host does is not undone.
            backends: how many backends must be ready.
            again: whether to ask the host although a backend of the model is registered.

        Raises:
            StartFailed: no host knows the model, or not enough backends became ready.
            Cancelled: the wait was cancelled.
        """
        ended = [each.id for each in self._registry.last_exits()]
        is_stopping = self._is_stopping(model)
        again = again or is_stopping
        start = _Start(model, seconds, deadline, backends, again, last_end_id=max(ended, default=0))
        try:
            while not cancelled.is_set():
                records = self._registry.records(model)
                awaits_host = is_stopping and not (start.request and start.request.is_answered)
                if not awaits_host and sum(map(_is_ready, records)) >= backends:
                    return
                self._advance(start, records)
                if reason := self._why_failed(start, records):
                    output = start.host_output() or self._read_output(model, start.last_end_id)
                    raise StartFailed(model, reason, output)
                cancelled.wait(min(_POLL_SECONDS, max(0.0, start.deadline - time.monotonic())))
            if start.request:
                start.request.wait()  # so that a later shutdown finds the new process
            raise Cancelled
        except BaseException:
            if start.request:
                start.request.abandon()
            raise

    def _is_stopping(self, model: str) -> bool:
        """Whether a backend is registered, and hosts have since listed the model as stopped."""
        records = self._registry.records(model)
        if not records:
            return False
        registered_at = max(each.registered_at for each in records)
        return self._known_models.is_stopped(model, oldest=registered_at)

    def _advance(self, start: _Start, records: Sequence[Record]) -> None:
        """Ask the host to start the model if that is due, and begin a further reading of it."""
        if start.request is None and (start.again or not records):
            seconds = start.deadline - time.monotonic()
            start.request = self._hooks.begin_start_model(start.model, max(0.0, seconds))
        if start.reading is None or start.reading.done():
            if start.reading is not None:
                start.note(start.reading.result(), not records)
            start.reading_at = time.monotonic()
            with suppress(RuntimeError):  # no thread can be started now
                (start.reading,) = self._thread_pool.map(self._read, [start.model], 1)

    def _read(self, model: str) -> KnownModel | None:
        """Read the model, which updates the states of its backends; return what its host lists.

        Also finds the files that its processes write to now: a shell redirects its output after its
        registration, and may end at once.
        """
        for record in self._registry.records(model):
            if record.output:
                record.output.refresh()
        with suppress(ModelNotLoaded, BackendUnreadable):
            self._model_reader.read(model)
        return self._known_models.find_current(model)

    def _why_failed(self, start: _Start, records: Sequence[Record]) -> str | None:
        """Return why a start has failed; None if it has not."""
        if reason := self._why_not_started(start, records):
            return reason
        now = time.monotonic()
        reason = self._why_at_rest(start, records)
        if reason is None:
            start.active_at = now
        elif start.known_at >= start.active_at + _REST_SECONDS:
            return reason
        if reason := self._why_crashing(start, records):
            return reason
        return self._why_too_late(start, records) if now >= start.deadline else None

    def _why_not_started(self, start: _Start, records: Sequence[Record]) -> str | None:
        """Return why the host has not started the model, or that there is no such host."""
        if start.request is None or not start.request.is_answered:
            return None
        answer = start.request.answer()
        if answer is None:
            if records:  # another program has started it
                return None
            known = self._known_models.find(start.model)
            facts = [
                "no host of this monitor knows how to start it"
                if known is None
                else "its host lists it, and does not start it",
                _host_state(known),
                self._exit_recorder.describe_last_exit(start.model),
            ]
            return "; ".join(each for each in facts if each)
        if answer.under_way and answer.error is None:
            return None
        return f"plugin {answer.plugin_name!r}: {answer.error or 'its host could not start it'}"

    def _why_at_rest(self, start: _Start, records: Sequence[Record]) -> str | None:
        """Return why no backend of the model will be ready; None if one may become ready."""
        if records:
            if all(each.state is State.ERROR for each in records):
                return f"its backend (process {records[-1].backend.pid}) reports the state ERROR"
            return None
        if start.request is None or not start.request.is_answered:
            return None
        ended = self._exit_recorder.describe_last_exit(start.model, start.last_end_id)
        if start.known is None:
            return ended
        if start.known.state in _AT_REST:
            return "; ".join(each for each in (_host_state(start.known), ended) if each)
        return None

    def _why_crashing(self, start: _Start, records: Sequence[Record]) -> str | None:
        """Return that the host restarts the model in vain; None if it does not, or not yet.

        A backend that has run since before the last `_MAX_ENDS` ends, such as another replica, is
        waited for.
        """
        ended = self._exit_recorder.describe_last_exit(start.model, start.last_end_id)
        ends = self._exit_recorder.ends_of(start.model, start.last_end_id)
        ended_since = ends[-_MAX_ENDS:][0].exit.ended_at if ends else 0.0
        are_new = all(each.backend.created_at >= ended_since for each in records)
        if max(len(ends), start.pauses) >= _MAX_ENDS and are_new:
            facts = ["its processes end again and again", ended]
        elif not records and start.paused_seconds >= _MAX_PAUSE_SECONDS:
            what = f"no process of it ran for {_MAX_PAUSE_SECONDS:g} s since the start began"
            facts = [what, _host_state(start.known), ended]
        else:
            return None
        return "; ".join(each for each in facts if each)

    def _why_too_late(self, start: _Start, records: Sequence[Record]) -> str:
        within = f"within {start.seconds:g} s"
        facts: list[str | None] = (
            [_describe_wait(records, start.backends, within)]
            if records
            else [f"no backend of it was registered {within}", _host_state(start.known)]
        )
        if start.request is not None and not start.request.is_answered:
            facts.append("its host has not returned from monitor_start_model")
        facts += [
            f"process {each.pid} was not registered: {each.reason}"
            for each in self._refusals.running()
            if each.model == start.model
        ]
        facts.append(self._exit_recorder.describe_last_exit(start.model, start.last_end_id))
        return "; ".join(each for each in facts if each)


class _Start:
    """A start in progress.

    Args:
        model: the model's name.
        seconds: the maximum time, for messages.
        deadline: when the maximum time is over (monotonic seconds).
        backends: how many backends must be ready.
        again: whether to ask the host although a backend of the model is registered.
        last_end_id: the number of the last end of a backend before the start.

    Attributes:
        request: the request to the host; None before the host was asked.
        reading: the reading of the model in progress; None before the first one.
        reading_at: when `reading` began (monotonic seconds).
        known: what the host listed for the model at the last reading; None if that is not known.
        known_at: when that last reading began (monotonic seconds).
        active_at: when the model was last seen not to be at rest (monotonic seconds).
        is_paused: whether the host was last seen to have no process of the model; it had none
            before it was asked.
        pauses: how often it was seen to have none after it had one.
        paused_seconds: for how long in all it was seen to have none.
    """

    def __init__(
        self,
        model: str,
        seconds: float,
        deadline: float,
        backends: int,
        again: bool,
        last_end_id: int,
    ) -> None:
        self.model = model
        self.seconds = seconds
        self.backends = backends
        self.again = again
        self.last_end_id = last_end_id
        self.deadline = deadline
        self.request: StartRequest | None = None
        self.reading: Future[KnownModel | None] | None = None
        self.known: KnownModel | None = None
        self.reading_at = self.known_at = self.active_at = time.monotonic()
        self.is_paused = True
        self.pauses = 0
        self.paused_seconds = 0.0

    def note(self, known: KnownModel | None, has_no_backend: bool) -> None:
        """Note what the reading in progress has found."""
        if self.request is not None and self.request.is_answered:
            was_paused = self.is_paused
            has_ended = known is not None and known.state in (*_AT_REST, "waiting")
            self.is_paused = has_no_backend and has_ended
            if self.is_paused and was_paused:
                self.paused_seconds += self.reading_at - self.known_at
            elif self.is_paused:
                self.pauses += 1
        self.known, self.known_at = known, self.reading_at

    def host_output(self) -> str | None:
        """Return the last output that the host has given with its failure; None if it has not."""
        if self.request is None or not self.request.is_answered:
            return None
        answer = self.request.answer()
        return answer and answer.last_output


def _is_ready(record: Record) -> bool:
    """Whether a backend is ready by its last known state; a BUSY backend was READY before."""
    is_ready = record.answered and record.state in (None, State.READY, State.BUSY)
    return is_ready and not record.process.ended()


def _host_state(known: KnownModel | None) -> str | None:
    if known is None:
        return None
    return f"its host says {known.state}" + (f" ({known.detail})" if known.detail else "")


def _describe_wait(records: Sequence[Record], backends: int, within: str) -> str:
    """Describe why registered backends are not ready, by the first one that is not."""
    waiting = [each for each in records if not _is_ready(each)]
    if not waiting and len(records) >= backends:
        return f"its host lists it as stopped, and has not started it again {within}"
    if not waiting:
        return f"{len(records)} of {backends} backends are ready {within}"
    record = waiting[0]
    if record.address_owner is not None:
        owner = describe_process(record.address_owner)
        what = f"has not answered {within}, as its address is served by process {owner}"
    elif record.answered and record.state is not None:
        what = f"is {record.state.name} {within}"
    else:
        what = f"has not answered {within}"
    return f"its backend (process {record.backend.pid}) {what}"
