"""What this node answers for itself, whoever asks: over HTTP or over NATS."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from ..errors import MonitorError, ShutdownFailed
from ..http.audit import audited_shutdown
from ..http.elsewhere import NODE_HEADER
from ..http.listing import Lister
from ..http.wire import Answer, StoppedAnswer, encode, error_answer, reading_answer
from ..wiring import Parts
from .messages import Ask, Reply, with_headers

_logger = logging.getLogger(__name__)


class Own:
    """Answers for this node. Safe to call from any thread; all of it may take its time.

    Args:
        node, run: its name, and which run of it this is.
        parts: read and stop its backends.
    """

    def __init__(self, node: str, run: str, parts: Parts) -> None:
        self.node = node
        self.run = run
        self._parts = parts
        self._lister = Lister(parts.registry, parts.sweeper, parts.shutdowns, node)

    def holds(self, model: str, pid: int | None = None) -> bool:
        """Whether it has a backend of a model, with a PID if one is given."""
        records = self._parts.registry.records(model)
        return any(pid in (None, each.backend.pid) for each in records)

    def describe_last_end(self, model: str) -> str | None:
        """Say how the last backend of a model ended here."""
        return self._parts.lifecycle.describe_last_end(model)

    def monitor(self, model: str, pid: int | None, held: bool = False) -> Reply:
        """Read a model.

        Args:
            model: its name.
            pid: one of its backends alone.
            held: to say also what its backends hold, where the reading has no status.
        """

        def read() -> Reply:
            shared = self._parts.model_readings.read(model, pid)
            reading, memory, source = shared.reading, None, None
            if held:
                memory, source = self._parts.model_readings.held(model, reading)
            answer = shared.answer = shared.answer or reading_answer(reading)
            return Reply(
                self.node, self.run, answer=answer, reading=reading, held=memory, held_source=source
            )

        return self._answered(read)

    def shutdown(self, model: str, force: bool, pid: int | None) -> Reply:
        """Stop a model."""

        def stop() -> Reply:
            self._parts.shutdowns.shutdown(model, force, pid)
            answer = Answer(200, encode(StoppedAnswer()), outcome="stopped")
            return Reply(self.node, self.run, answer=answer)

        return self._answered(stop)

    def shutdown_for(self, ask: Ask) -> Reply:
        """Stop a model for another node, and write that into the audit."""
        caller = ask.caller

        def stop() -> Reply:
            with audited_shutdown(
                ask.model,
                ask.force,
                ask.pid,
                who=caller.name,
                whence=f"node {caller.node} ({caller.whence})",
                what="POST /backend/shutdown",
            ):
                self._parts.shutdowns.shutdown(ask.model or "", ask.force, ask.pid)
            answer = Answer(200, encode(StoppedAnswer()), outcome="stopped")
            return Reply(self.node, self.run, answer=answer)

        return self._answered(stop)

    def backends(self, ask: Ask) -> Reply:
        """List backends; by PID, where only some are wanted."""

        def read() -> Reply:
            found = self._lister.list(ask.model, ask.fresh)
            if ask.limit is not None:
                after = ask.after_pid or 0
                items = sorted(
                    (each for each in found.backends if each.pid > after), key=lambda e: e.pid
                )
                ended = found.ended if ask.after_pid is None else []
                found = replace(found, backends=items[: ask.limit], ended=ended)
            return Reply(self.node, self.run, answer=Answer(200, encode(found)))

        return self._answered(read)

    def _answered(self, make: Callable[[], Reply]) -> Reply:
        try:
            reply = make()
        except MonitorError as error:
            pids = error.pids if isinstance(error, ShutdownFailed) else ()
            message = f"{error} (node {self.node})" if pids else None  # PIDs are a node's
            reply = Reply(self.node, self.run, answer=error_answer(error, message))
        except Exception as error:
            _logger.error("answering failed", exc_info=error)
            reply = Reply(self.node, self.run, answer=error_answer(error))
        assert reply.answer is not None
        return replace(reply, answer=with_headers(reply.answer, {NODE_HEADER: self.node}))
