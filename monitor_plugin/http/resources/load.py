"""`/backend/load` and `/backend/restart`: start a model, or stop it and start it again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView
from ...api.errors import load_failed_response
from ...api.requests import (
    LoadBody,
    NodeLoadBody,
    NodeRestartBody,
    RestartBody,
    parse_body,
    parse_query,
)
from ...api.results import Response, loaded_response
from ...concurrency.blocking import BlockingObserver
from ...domain.errors import MonitorError, TooManyStarts
from ...domain.model_name import validate_model_name
from ..messages import read_json, requester_of, send_response

_RETRY_AFTER_SECONDS = 5


class StartSlots:
    """Limits the requests that wait for a start or a restart; each occupies a thread.

    Args:
        limit: the maximum number of requests.
        blocking: is entered while a request waits.
    """

    def __init__(self, limit: int, blocking: BlockingObserver) -> None:
        self._limit = limit
        self._blocking = blocking
        self._slots = threading.Semaphore(limit)

    def run(self, operate: Callable[[], Response]) -> Response:
        """Run an operation, and return its response, or the response of its error."""
        if not self._slots.acquire(blocking=False):
            return load_failed_response(TooManyStarts(self._limit, _RETRY_AFTER_SECONDS))
        try:
            with self._blocking:
                return operate()
        except MonitorError as error:
            return load_failed_response(error)
        finally:
            self._slots.release()


class LoadResource:
    """`/backend/load`: starts a model.

    Args:
        start: starts a model, and waits until it is ready; raises if it fails.
        is_loaded: whether a start would have nothing to do; such a request does not wait.
        slots: limits the requests that wait.
        cluster: the cluster; None without a cluster.
    """

    def __init__(
        self,
        start: Callable[[str], None],
        is_loaded: Callable[[str], bool],
        slots: StartSlots,
        cluster: ClusterView | None,
    ) -> None:
        self._start = start
        self._is_loaded = is_loaded
        self._slots = slots
        self._cluster = cluster

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Start the model, and answer when it is ready."""
        request.context.arguments = {"model": None}  # for the audit
        content = read_json(request, "a load")
        body = parse_body(content, NodeLoadBody if self._cluster else LoadBody)
        request.context.arguments = {"model": body.model}
        model = validate_model_name(body.model)
        node = _node_of(request, body)

        def operate() -> Response:
            if self._cluster is not None:
                return self._cluster.load(model, node, requester_of(request))
            self._start(model)
            return loaded_response(model)

        if self._cluster is None and self._is_loaded(model):
            _send(request, response, loaded_response(model))
        else:
            _send(request, response, self._slots.run(operate))


class RestartResource:
    """`/backend/restart`: stops a model, or one of its backends, and starts the model again.

    Args:
        restart: restarts a model, by force or not, or its backend with a PID; raises if it fails.
        slots: limits the requests that wait.
        cluster: the cluster; None without a cluster.
    """

    def __init__(
        self,
        restart: Callable[[str, bool, int | None], None],
        slots: StartSlots,
        cluster: ClusterView | None,
    ) -> None:
        self._restart = restart
        self._slots = slots
        self._cluster = cluster

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Restart the model, and answer when it is ready again."""
        request.context.arguments = {"model": None, "force": False}  # for the audit
        content = read_json(request, "a restart")
        body = parse_body(content, NodeRestartBody if self._cluster else RestartBody)
        request.context.arguments = {"model": body.model, "force": body.force, "pid": body.pid}
        model = validate_model_name(body.model)
        node = _node_of(request, body)

        def operate() -> Response:
            if self._cluster is not None:
                requester = requester_of(request)
                return self._cluster.restart(model, body.force, body.pid, node, requester)
            self._restart(model, body.force, body.pid)
            return loaded_response(model, "restarted")

        _send(request, response, self._slots.run(operate))


def _node_of(request: falcon.Request, body: LoadBody | RestartBody) -> str | None:
    """Return the node that the query, or else the body, names in a cluster; None without one."""
    if not isinstance(body, (NodeLoadBody, NodeRestartBody)):
        return None
    node = parse_query(request.query_string).get("node", body.node)
    if node is not None:
        request.context.arguments["node"] = node
    return node


def _send(request: falcon.Request, response: falcon.Response, result: Response) -> None:
    request.context.outcome = result.outcome
    send_response(response, result)
