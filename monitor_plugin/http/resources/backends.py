"""What answers at each route; the work is done by the functions that are passed in."""

from __future__ import annotations

import threading
from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView
from ...api.requests import (
    MonitorBody,
    NodeMonitorBody,
    NodeShutdownBody,
    ShutdownBody,
    parse_body,
    parse_pid,
    parse_query,
)
from ...api.results import HealthAnswer, StoppedAnswer, encode, encode_plugins, shared_response
from ...domain.errors import TooManyShutdowns
from ...domain.model_name import validate_model_name
from ...domain.models import LoadedPlugin
from ...readings.model_reader import SharedReading
from ..responses import requester_of, send_response

MAX_BODY_BYTES = 64 * 1024
_RETRY_AFTER_SECONDS = 5


class MonitorResource:
    """`/backend/monitor`: a reading of a model, named in the query or in a JSON body.

    Args:
        read: gives the reading of a model, or of its backend with a PID.
        cluster: the other nodes of a cluster.
    """

    def __init__(
        self, read: Callable[[str, int | None], SharedReading], cluster: ClusterView | None
    ) -> None:
        self._read = read
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the model's reading."""
        body = read_body(request)
        query = parse_query(request.query_string)
        node = None
        if "model" in query:
            model, pid = query["model"], None
        else:
            parsed = parse_body(body, NodeMonitorBody if self._cluster else MonitorBody)
            model, pid, node = parsed.model, parsed.pid, getattr(parsed, "node", None)
        if "pid" in query:
            pid = parse_pid(query["pid"])
        if self._cluster:
            node = query.get("node", node)
            answer = self._cluster.monitor(
                validate_model_name(model), pid, node, requester_of(request)
            )
            send_response(response, answer)
            return
        send_response(response, shared_response(self._read(validate_model_name(model), pid)))

    on_post = on_get  # what the documented curl command sends


class ShutdownResource:
    """`/backend/shutdown`: stops a model, or one of its backends.

    Args:
        shutdown: stops it, by force or not, all of it or a PID; raises where it is not stopped.
        at_once: how many requests may wait for their shutdown; each holds a thread.
        cluster: the other nodes of a cluster.
    """

    def __init__(
        self,
        shutdown: Callable[[str, bool, int | None], None],
        at_once: int,
        cluster: ClusterView | None,
    ) -> None:
        self._shutdown = shutdown
        self._cluster = cluster
        self._at_once = at_once
        self._places = threading.Semaphore(at_once)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Stop the model, and answer once it is gone."""
        request.context.shutdown = {"model": None, "force": False}  # for the audit
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        if media_type != falcon.MEDIA_JSON:
            raise falcon.HTTPUnsupportedMediaType(
                description=f"a shutdown wants Content-Type: application/json, not {media_type!r}"
            )
        kind = NodeShutdownBody if self._cluster else ShutdownBody
        body = parse_body(read_body(request), kind)
        request.context.shutdown = {"model": body.model, "force": body.force, "pid": body.pid}
        model = validate_model_name(body.model)
        if not self._places.acquire(blocking=False):
            raise TooManyShutdowns(self._at_once, _RETRY_AFTER_SECONDS)
        try:
            if self._cluster:
                node = parse_query(request.query_string).get("node", getattr(body, "node", None))
                if node is not None:
                    request.context.shutdown["node"] = node
                answer = self._cluster.shutdown(
                    model, body.force, body.pid, node, requester_of(request)
                )
                request.context.outcome = answer.outcome
                send_response(response, answer)
                return
            self._shutdown(model, body.force, body.pid)
        finally:
            self._places.release()
        request.context.outcome = "stopped"
        response.data = encode(StoppedAnswer())
        response.content_type = falcon.MEDIA_JSON


class HealthResource:
    """`/healthz` and `/readyz`: whether the monitor answers at all, and whether it watches."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Say that it answers."""
        self._answer(response, "ok")

    def on_get_ready(self, request: falcon.Request, response: falcon.Response) -> None:
        """Say whether it is started, and not closing."""
        if self._is_ready():
            self._answer(response, "ready")
        else:
            response.status = falcon.HTTP_503
            self._answer(response, "not ready")

    def _answer(self, response: falcon.Response, status: str) -> None:
        response.data = encode(HealthAnswer(status))
        response.content_type = falcon.MEDIA_JSON


class HooksResource:
    """`/hooks`: the plugins that are loaded, and how their hooks fared.

    Args:
        plugins: lists them.
        disabled: names of plugins that are left out.
    """

    def __init__(
        self, plugins: Callable[[], list[LoadedPlugin]], disabled: tuple[str, ...]
    ) -> None:
        self._plugins = plugins
        self._disabled = disabled

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        response.data = encode_plugins(self._plugins(), self._disabled)
        response.content_type = falcon.MEDIA_JSON


class OpenApiResource:
    """`/openapi.json`: the description of all this."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Give the description."""
        response.data = self._document
        response.content_type = falcon.MEDIA_JSON


def read_body(request: falcon.Request) -> bytes:
    """Read the body, whatever the method.

    Raises:
        falcon.HTTPContentTooLarge: it has more than MAX_BODY_BYTES.
    """
    size, body = request.content_length or 0, b""
    if size:
        body = b"" if size > MAX_BODY_BYTES else request.bounded_stream.read()
    elif request.env.get("wsgi.input_terminated"):  # a host's own server, and a chunked body
        while size <= MAX_BODY_BYTES and (more := request.stream.read(MAX_BODY_BYTES + 1 - size)):
            body += more
            size += len(more)
    if size > MAX_BODY_BYTES:
        raise falcon.HTTPError(
            413, description=f"the body is larger than {MAX_BODY_BYTES} bytes, and is not read"
        )
    return body
