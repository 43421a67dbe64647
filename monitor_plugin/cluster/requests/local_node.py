"""What this node answers for itself, whoever asks: over HTTP or over NATS."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from ...api.audit import audited_shutdown
from ...api.cluster_view import NODE_HEADER
from ...api.lister import Lister
from ...api.results import Response, StoppedAnswer, encode, error_response, shared_response
from ...backends.registry import Registry
from ...domain.errors import MonitorError, ShutdownFailed
from ...readings.model_reader import ModelReader
from ...shutdown.coordinator import ShutdownCoordinator
from ..transport.messages import Reply, Request, with_headers

_logger = logging.getLogger(__name__)


class LocalNode:
    """Answers for this node. Safe to call from any thread; all of it may take its time.

    Args:
        node, run: its name, and which run of it this is.
        registry: its backends.
        model_reader: reads its models.
        coordinator: shuts its models down.
        lister: lists its backends.
        describe_last_exit: says how the last backend of a model ended here; None where none did.
    """

    def __init__(
        self,
        node: str,
        run: str,
        registry: Registry,
        model_reader: ModelReader,
        coordinator: ShutdownCoordinator,
        lister: Lister,
        describe_last_exit: Callable[[str], str | None],
    ) -> None:
        self.node = node
        self.run = run
        self.describe_last_exit = describe_last_exit
        self._registry = registry
        self._model_reader = model_reader
        self._coordinator = coordinator
        self._lister = lister

    def holds(self, model: str, pid: int | None = None) -> bool:
        """Whether it has a backend of a model, with a PID if one is given."""
        records = self._registry.records(model)
        return any(pid in (None, each.backend.pid) for each in records)

    def monitor(self, model: str, pid: int | None, with_memory: bool = False) -> Reply:
        """Read a model.

        Args:
            model: its name.
            pid: one of its backends alone.
            with_memory: to say also what its backends hold, where the reading has no status.
        """

        def read() -> Reply:
            shared = self._model_reader.read(model, pid)
            reading, memory, source = shared.reading, None, None
            if with_memory:
                memory, source = self._model_reader.memory(model, reading)
            return Reply(
                self.node,
                self.run,
                answer=shared_response(shared),
                reading=reading,
                memory=memory,
                memory_source=source,
            )

        return self._answered(read)

    def shutdown(self, model: str, force: bool, pid: int | None) -> Reply:
        """Stop a model."""

        def stop() -> Reply:
            self._coordinator.shutdown(model, force, pid)
            answer = Response(200, encode(StoppedAnswer()), outcome="stopped")
            return Reply(self.node, self.run, answer=answer)

        return self._answered(stop)

    def shutdown_for(self, ask: Request) -> Reply:
        """Stop a model for another node, and write that into the audit."""
        caller = ask.caller

        def stop() -> Reply:
            with audited_shutdown(
                ask.model,
                ask.force,
                ask.pid,
                caller=caller.name,
                client=f"node {caller.node} ({caller.address})",
                action="POST /backend/shutdown",
            ):
                self._coordinator.shutdown(ask.model or "", ask.force, ask.pid)
            answer = Response(200, encode(StoppedAnswer()), outcome="stopped")
            return Reply(self.node, self.run, answer=answer)

        return self._answered(stop)

    def backends(self, ask: Request) -> Reply:
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
            return Reply(self.node, self.run, answer=Response(200, encode(found)))

        return self._answered(read)

    def _answered(self, make: Callable[[], Reply]) -> Reply:
        try:
            reply = make()
        except MonitorError as error:
            pids = error.pids if isinstance(error, ShutdownFailed) else ()
            message = f"{error} (node {self.node})" if pids else None  # PIDs are a node's
            reply = Reply(self.node, self.run, answer=error_response(error, message))
        except Exception as error:
            _logger.error("answering failed", exc_info=error)
            reply = Reply(self.node, self.run, answer=error_response(error))
        assert reply.answer is not None
        return replace(reply, answer=with_headers(reply.answer, {NODE_HEADER: self.node}))
