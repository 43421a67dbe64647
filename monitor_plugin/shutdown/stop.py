"""The stop of one backend: drain, free, end its whole tree, and verify that it is gone."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import grpc

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..config.settings import Settings
from ..domain.errors import ShutdownFailed
from ..domain.models import State
from ..plugins.hooks import Hooks
from ..processes.process import Process, ProcessGone
from ..processes.process_tree import ProcessTree
from ..readings.reader import BackendReader
from ..rpc.client import StatusClient

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_REFRESH_SECONDS = 0.5


class Stop:
    """A stop: of which backend, how far it is, and what went wrong.

    Attributes:
        record: the backend's.
        resources: to be closed at the end.
        tree: its process tree, once it is open; None where it had ended before.
        is_busy: whether it was so still after the drain, or nobody could ask it meanwhile.
        by_host: whether a hook stopped it through the host's books.
        failure: None where it is gone.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.resources = ExitStack()
        self.tree: ProcessTree | None = None
        self.is_busy = False
        self.by_host = False
        self.failure: ShutdownFailed | None = None

    def fail(self, reason: str, tree: ProcessTree) -> None:
        """Note why it failed, and what is left."""
        left = [member.pid for member in tree.alive()]
        if left:
            reason = f"{reason}; still running: {pids_text(left)}"
        self.failure = ShutdownFailed(self.record.backend.model, reason, left)

    def spare(self) -> None:
        """Note that it is left alone, as it is busy, or may be."""
        if self.tree and not self.failure:
            self.fail("it may be busy, and was to be spared then", self.tree)


class Stopper:
    """Stops backends. Safe to call from any thread.

    Args:
        registry: told which are being stopped.
        exit_recorder: records the exit of a backend whose process has ended.
        backend_reader: asks whether they are busy.
        status_client: asks them to free what they hold.
        hooks: asked to stop them through the host's books.
        settings: the timeouts.

    Attributes:
        closing: once set, waits end, and nothing more is signalled.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        backend_reader: BackendReader,
        status_client: StatusClient,
        hooks: Hooks,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._backend_reader = backend_reader
        self._status_client = status_client
        self._hooks = hooks
        self._settings = settings
        self.closing = threading.Event()

    def open(self, stop: Stop) -> None:
        """Get hold of the backend's process tree."""
        with self._noting_failure(stop):
            root = stop.resources.enter_context(Process(stop.record.backend.pid))
            if stop.record.process.ended():  # and `root` is another process with its PID
                raise ProcessGone(root.pid)
            stop.tree = stop.resources.enter_context(ProcessTree(root))

    @contextmanager
    def _noting_failure(self, stop: Stop) -> Iterator[None]:
        backend = stop.record.backend
        try:
            yield
        except ProcessGone:
            self._exit_recorder.end(stop.record)
        except OSError as error:  # no more descriptors, say
            reason = f"its processes cannot be looked at: {error}"
            stop.failure = ShutdownFailed(backend.model, reason, [backend.pid])

    def begin_drain(self, hurry: threading.Event) -> Callable[[Stop], None]:
        """Begin the time of a drain, which all backends of a shutdown share.

        Args:
            hurry: ends the waiting once it is set.

        Returns:
            What waits while a backend is busy, or was and does not answer, at most until that time
            is over; it notes in the stop whether it is busy all the same.
        """
        deadline = time.monotonic() + self._settings.drain_timeout_seconds

        def drain(stop: Stop) -> None:
            with self._noting_failure(stop):
                stop.is_busy = self._is_busy_after_drain(stop, hurry, deadline)

        return drain

    def _is_busy_after_drain(self, stop: Stop, hurry: threading.Event, deadline: float) -> bool:
        record, refresh_at = stop.record, 0.0
        was_asked = self._settings.drain_timeout_seconds <= 0  # or is not to be
        while not hurry.is_set() and (left := deadline - time.monotonic()) > 0:
            if stop.tree and time.monotonic() >= refresh_at:
                with suppress(OSError):  # no descriptor is free; it is looked for again at the end
                    stop.tree.rescan()  # what it starts meanwhile outlives it if it crashes
                refresh_at = time.monotonic() + _REFRESH_SECONDS
            status, _, rpc_error = self._backend_reader.status(record, left)
            was_asked = True
            deaf = rpc_error == grpc.StatusCode.DEADLINE_EXCEEDED.name
            if record.state is not State.BUSY or (status is None and not deaf):
                return deaf  # which may mean busy, though it is not waited for
            hurry.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        return record.state is State.BUSY or not (was_asked or hurry.is_set())

    def stop(self, stop: Stop) -> None:
        """Free and end the backend; how, and what went wrong, is noted in `stop`."""
        if stop.tree is None or stop.failure:
            return
        with self._noting_failure(stop):
            self._registry.set_stopping(stop.record, True)
            try:
                self._end_tree(stop, stop.tree)
            finally:
                if stop.record.process.ended():
                    self._exit_recorder.end(stop.record)
                else:
                    self._registry.set_stopping(stop.record, False)

    def _end_tree(self, stop: Stop, tree: ProcessTree) -> None:
        """Free and end a backend's tree, by the host's books or by signals."""
        backend, seconds = stop.record.backend, self._settings.stop_timeout_seconds
        answer = None
        if not self.closing.is_set() and (error := self._status_client.free(backend)):
            _logger.debug("Free of model %r (process %d): %s", backend.model, backend.pid, error)
        if not self.closing.is_set():
            tree.rescan_until_stable()
            answer = self._hooks.stop_backend(backend, seconds)
        if answer is None:
            if self.closing.is_set():
                stop.fail("the monitor was closed while it waited; nothing was signalled", tree)
                return
            sent = tree.stop(seconds, self.closing)
            why = {
                None: "by nothing: it may not be signalled",
                signal.SIGTERM: "by SIGTERM",
                signal.SIGKILL: f"by SIGTERM, and {seconds:g} s later by SIGKILL",
            }[sent]
        elif answer.under_way:
            stop.by_host = True
            tree.wait_ended(seconds, self.closing)
            why = answer.error or f"and {seconds:g} s later it was still running"
            why = f"by plugin {answer.plugin_name!r}, {why}; nothing was signalled"
        else:
            why = answer.error or "says that it could not stop it"
            stop.fail(f"plugin {answer.plugin_name!r}: {why}", tree)
            return
        if tree.alive():
            closed = "; the monitor was closed meanwhile" if self.closing.is_set() else ""
            stop.fail(f"it was stopped {why}{closed}", tree)


def pids_text(pids: Sequence[int]) -> str:
    """Name PIDs for people."""
    return f"PID{'s' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
