"""This node's own answers, to clients of its HTTP server and to other nodes."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from ...api.audit import AuditedResult, audited
from ...api.cluster_view import NODE_HEADER
from ...api.errors import error_response, load_failed_response
from ...api.gpus import GpuLister
from ...api.lister import Lister
from ...api.results import (
    FREED_HEADER,
    Response,
    encode,
    loaded_response,
    parse_freed,
    shared_response,
    stopped_response,
)
from ...api.schemas import GpusAnswer
from ...backends.left_behind import LeftBehindTracker
from ...backends.refusals import Refusals
from ...backends.registry import Registry
from ...domain.errors import MonitorError, ShutdownFailed
from ...operations.known_models import KnownModels
from ...operations.model_operations import ModelOperations
from ...processes.limits import LimitsReader
from ...readings.model_reader import ModelReader
from ...readings.sweeper import Sweeper
from ...readings.unit_reader import UnitReader
from ...shutdown.coordinator import ShutdownCoordinator
from ..transport.messages import (
    CLAIMED,
    LISTED,
    LOADED,
    OUTCOMES,
    POSSIBLE,
    STARTABLE,
    UNKNOWN,
    Reply,
    Request,
    with_headers,
)

_logger = logging.getLogger(__name__)


class LocalNode:
    """Answers requests about this node's models. Safe to call from any thread; calls may block.

    Args:
        node: the name of this node.
        registry: this node's backends.
        left_behind: knows the processes that ended backends have left behind.
        refusals: the registrations that this node has refused.
        model_reader: reads this node's models.
        operations: starts, stops and restarts this node's models.
        coordinator: gives the progress of each shutdown.
        sweeper: reads all backends of this node.
        limits_reader: reads the limits of this node's monitor.
        gpu_lister: lists the GPUs of this node.
        known_models: the models that this node's hosts can run.
        unit_reader: reads the units in which hosts run the backends.
        describe_last_exit: describes how the last backend of a model ended; None if none has ended.
        is_partly_verified: whether the monitor cannot see all processes.

    Attributes:
        run: identifies this process among all that ever had the node's name.
    """

    def __init__(
        self,
        node: str,
        registry: Registry,
        left_behind: LeftBehindTracker,
        refusals: Refusals,
        model_reader: ModelReader,
        operations: ModelOperations,
        coordinator: ShutdownCoordinator,
        sweeper: Sweeper,
        limits_reader: LimitsReader,
        gpu_lister: GpuLister,
        known_models: KnownModels,
        unit_reader: UnitReader,
        describe_last_exit: Callable[[str], str | None],
        is_partly_verified: bool,
    ) -> None:
        self.node = node
        self.run = secrets.token_hex(8)
        self.describe_last_exit = describe_last_exit
        self._is_partly_verified = is_partly_verified
        self._registry = registry
        self._left_behind = left_behind
        self._model_reader = model_reader
        self._operations = operations
        self._known_models = known_models
        self._lock = threading.Lock()
        self._claims: Counter[str] = Counter()  # by model
        self._gpu_lister = gpu_lister
        self._lister = Lister(
            registry,
            refusals,
            sweeper,
            coordinator,
            limits_reader,
            gpu_lister,
            known_models,
            unit_reader,
            node,
        )

    def has(self, model: str, pid: int | None = None, *, stopping: bool = False) -> bool:
        """Whether this node has a backend of a model, with that PID unless it is None.

        Args:
            model: the name of the model.
            pid: the PID of the backend; None for any.
            stopping: also count other things that a shutdown stops: processes that an ended backend
                has left behind, and a start of the model.
        """
        records = self._registry.records(model)
        if any(pid in (None, each.backend.pid) for each in records):
            return True
        if not stopping:
            return False
        is_starting = pid is None and self._operations.is_starting(model)
        return is_starting or self._left_behind.has(model, pid)

    def is_loaded(self, model: str) -> bool:
        """Whether this node has a backend of a model, or is starting one."""
        return self.has(model) or self._operations.is_starting(model)

    @contextlib.contextmanager
    def claim(self, model: str) -> Iterator[None]:
        """Tell other nodes, during the context, that this one may be about to start a model."""
        with self._lock:
            self._claims[model] += 1
        try:
            yield
        finally:
            with self._lock:
                self._claims[model] -= 1
                if not self._claims[model]:
                    del self._claims[model]

    def offered_state(self, model: str) -> str:
        """Return the state for another node: `CLAIMED`, or as `start_state`."""
        with self._lock:
            is_claimed = model in self._claims
        return CLAIMED if is_claimed and not self.is_loaded(model) else self.start_state(model)

    def start_state(self, model: str) -> str:
        """Ask the hosts, and return the state of a model on this node: one of `START_STATES`."""
        if self.is_loaded(model):
            return LOADED
        known = self._known_models.find(model)
        if known is not None:
            return STARTABLE if known.can_start else LISTED
        return POSSIBLE if self._known_models.may_start_unlisted() else UNKNOWN

    def answer(self, request: Request, *, audit: bool = False) -> Reply:
        """Answer a request for a reading, a list or an operation on a model, also with an error.

        Args:
            request: the request.
            audit: whether to audit an operation on a model. The HTTP server audits its own requests
                itself.
        """
        operations = {
            "monitor": self._read,
            "backends": self._list,
            "shutdown": self._stop,
            "load": self._load,
            "restart": self._restart,
        }
        loads = request.operation in ("load", "restart")
        fail = load_failed_response if loads else error_response
        try:
            with _audited(request) if audit else contextlib.nullcontext(AuditedResult()) as line:
                reply = operations[request.operation](request)
                assert reply.answer is not None
                line.freed = parse_freed(reply.answer.headers.get(FREED_HEADER))
        except MonitorError as error:
            pids = error.pids if isinstance(error, ShutdownFailed) else ()
            message = f"{error} (node {self.node})" if pids else None  # a PID is that of one node
            reply = self._reply(fail(error, message))
        except Exception as error:
            _logger.exception("a request could not be answered")
            reply = self._reply(fail(error))
        assert reply.answer is not None
        return replace(reply, answer=with_headers(reply.answer, {NODE_HEADER: self.node}))

    def _reply(self, answer: Response) -> Reply:
        return Reply(self.node, self.run, answer=answer)

    def _read(self, request: Request) -> Reply:
        model = request.model or ""
        shared = self._model_reader.read(model, request.pid)
        reply = replace(self._reply(shared_response(shared)), reading=shared.reading)
        if not request.with_memory:
            return reply
        memory, source, age_seconds = self._model_reader.memory(model, shared.reading)
        return replace(reply, memory=memory, memory_source=source, memory_age_seconds=age_seconds)

    def _list(self, request: Request) -> Reply:
        """List backends, or only GPUs. A page is sorted by PID."""
        if request.gpus_only:
            return self._reply(Response(200, encode(GpusAnswer(self._gpu_lister.read()))))
        is_admin = request.caller.role == "admin"
        listed = self._lister.list(request.model, request.fresh, with_output=is_admin)
        if request.limit is not None:
            after_pid = request.after_pid or 0
            backends = [each for each in listed.backends if each.pid > after_pid]
            backends.sort(key=lambda each: each.pid)
            listed = replace(listed, backends=backends[: request.limit])
            if request.after_pid is not None:  # the first page has all that did not fit a page
                listed = replace(listed, ended=[], refused=[], gpus=[], models=[])
        return self._reply(Response(200, encode(listed)))

    def _stop(self, request: Request) -> Reply:
        freed = self._operations.shutdown(request.model or "", request.force, request.pid)
        return self._reply(stopped_response(self._is_partly_verified, freed))

    def _load(self, request: Request) -> Reply:
        model = request.model or ""
        self._operations.start(model)
        return self._reply(loaded_response(model))

    def _restart(self, request: Request) -> Reply:
        model = request.model or ""
        self._operations.restart(model, request.force, request.pid)
        return self._reply(loaded_response(model, "restarted"))


def _audited(request: Request) -> contextlib.AbstractContextManager[AuditedResult]:
    caller = request.caller
    arguments: dict[str, object] = {"model": request.model}
    if request.operation != "load":
        arguments.update(force=request.force, pid=request.pid)
    return audited(
        f"POST /backend/{request.operation}",
        arguments,
        OUTCOMES[request.operation],
        caller=caller.name,
        client=f"node {caller.node} ({caller.address})",
    )
