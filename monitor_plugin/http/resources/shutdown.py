"""`/backend/shutdown`: stops a model."""

from __future__ import annotations

import threading
from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView
from ...api.requests import NodeShutdownBody, ShutdownBody, parse_body, parse_query
from ...api.results import stopped_response
from ...concurrency.blocking import BlockingObserver
from ...domain.errors import TooManyShutdowns
from ...domain.model_name import validate_model_name
from ...domain.models import Freed
from ..messages import read_json, requester_of, send_response

_RETRY_AFTER_SECONDS = 5


class ShutdownResource:
    """`/backend/shutdown`: stops a model, or one of its backends.

    Args:
        shutdown: stops a model, by force or not, or its backend with a PID; raises if it fails.
        limit: maximum number of requests that wait for their shutdown; each occupies a thread.
        blocking: is entered during a shutdown, which mostly waits.
        is_partly_verified: whether the monitor cannot see all processes.
        cluster: the cluster; None without a cluster.
    """

    def __init__(
        self,
        shutdown: Callable[[str, bool, int | None], Freed],
        limit: int,
        blocking: BlockingObserver,
        is_partly_verified: bool,
        cluster: ClusterView | None,
    ) -> None:
        self._shutdown = shutdown
        self._cluster = cluster
        self._limit = limit
        self._blocking = blocking
        self._is_partly_verified = is_partly_verified
        self._slots = threading.Semaphore(limit)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Stop the model, and answer when it has ended and its memory is free."""
        request.context.arguments = {"model": None, "force": False}  # for the audit
        content = read_json(request, "a shutdown")
        body = parse_body(content, NodeShutdownBody if self._cluster else ShutdownBody)
        request.context.arguments = {"model": body.model, "force": body.force, "pid": body.pid}
        model = validate_model_name(body.model)
        if not self._slots.acquire(blocking=False):
            raise TooManyShutdowns(self._limit, _RETRY_AFTER_SECONDS)
        try:
            with self._blocking:
                self._stop(model, body, request, response)
        finally:
            self._slots.release()

    def _stop(
        self,
        model: str,
        body: ShutdownBody,
        request: falcon.Request,
        response: falcon.Response,
    ) -> None:
        if self._cluster is None:
            freed = self._shutdown(model, body.force, body.pid)
            result = stopped_response(self._is_partly_verified, freed)
        else:
            node = parse_query(request.query_string).get("node", getattr(body, "node", None))
            if node is not None:
                request.context.arguments["node"] = node
            requester = requester_of(request)
            result = self._cluster.shutdown(model, body.force, body.pid, node, requester)
        request.context.outcome = result.outcome
        send_response(response, result)
