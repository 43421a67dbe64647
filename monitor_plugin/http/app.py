"""The WSGI application: routes, and how errors are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import falcon

from ..api.cluster_view import ClusterView
from ..api.lister import Lister
from ..api.results import INTERNAL_ERROR, encode_error, error_response, kind_of_status
from ..config.settings import Settings
from ..config.tokens import Tokens
from ..domain.errors import MonitorError
from ..domain.models import LoadedPlugin
from ..readings.model_reader import SharedReading
from ..telemetry.event_log import EventLog
from ..telemetry.time_series import TimeSeries
from .middleware.audit import Audit
from .middleware.guard import Guard, cors
from .middleware.node_header import NodeHeader
from .openapi import describe_api
from .resources.backends import (
    HealthResource,
    HooksResource,
    MonitorResource,
    OpenApiResource,
    ShutdownResource,
)
from .resources.lists import (
    BackendsResource,
    EventsResource,
    HistoryResource,
    TargetsResource,
    VersionResource,
)
from .resources.metrics import MetricsResource, MetricsSource
from .resources.page import add_page
from .responses import send_response

_logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    tokens: Tokens,
    *,
    read: Callable[[str, int | None], SharedReading],
    shutdown: Callable[[str, bool, int | None], None],
    lister: Lister,
    event_log: EventLog,
    time_series: TimeSeries,
    metrics: MetricsSource,
    is_ready: Callable[[], bool],
    plugins: Callable[[], list[LoadedPlugin]],
    cluster: ClusterView | None = None,
) -> falcon.App[Any, Any]:
    """Make the application.

    Args:
        settings: who may ask; of `http_threads`, shutdowns hold at most half, and those who wait
            for events a quarter.
        tokens: which tokens are valid.
        read: reads a model, or its backend with a PID.
        shutdown: stops a model, by force or not, or its backend with a PID.
        lister: lists the backends.
        event_log: what happened of late.
        time_series: the figures of the last minutes.
        metrics: the figures of `/metrics`.
        is_ready: whether the monitor is started, and not closing.
        plugins: lists what is loaded.
        cluster: the other nodes of a cluster.
    """
    says_which = [NodeHeader(cluster.node)] if cluster else []
    guard = Guard(settings, tokens)
    app = falcon.App(middleware=[Audit(), *says_which, guard, *cors(settings)])
    monitor = MonitorResource(read, cluster)
    at_once = max(1, settings.http_threads // 2)
    stop = ShutdownResource(shutdown, at_once, cluster)
    backends = BackendsResource(lister, cluster)
    events = EventsResource(event_log, max(1, settings.http_threads // 4), cluster)
    health = HealthResource(is_ready)
    for prefix in ("", "/v1"):
        app.add_route(f"{prefix}/backend/monitor", monitor)
        app.add_route(f"{prefix}/backend/shutdown", stop)
        app.add_route(f"{prefix}/backends", backends)
    if cluster:
        app.add_route("/cluster/targets", TargetsResource(cluster))
    app.add_route("/events", events)
    app.add_route("/history", HistoryResource(time_series, cluster))
    app.add_route("/metrics", MetricsResource(metrics))
    app.add_route("/version", VersionResource())
    app.add_route("/healthz", health)
    app.add_route("/readyz", health, suffix="ready")
    app.add_route("/hooks", HooksResource(plugins, settings.disable_hook))
    document = describe_api(tokens.required, clustered=cluster is not None)
    app.add_route("/openapi.json", OpenApiResource(document))
    add_page(app)
    app.set_error_serializer(_serialize_http_error)
    app.add_error_handler(MonitorError, _answer_monitor_error)
    app.add_error_handler(Exception, _answer_unexpected_error)
    return app


def _serialize_http_error(
    request: falcon.Request, response: falcon.Response, error: falcon.HTTPError
) -> None:
    status = falcon.http_status_to_code(error.status)
    message = error.description or error.title
    if status == 404 and not error.description:
        message = f"there is nothing at {request.path}"
    elif status == 405:
        message = f"{request.path} does not take {request.method}"
    kind = kind_of_status(status)
    request.context.outcome = kind.type
    response.data = encode_error(kind, message or "")
    response.content_type = falcon.MEDIA_JSON


def _answer_monitor_error(
    request: falcon.Request, response: falcon.Response, error: MonitorError, parameters: Any
) -> None:
    answer = error_response(error)
    request.context.outcome = answer.outcome
    send_response(response, answer)


def _answer_unexpected_error(
    request: falcon.Request, response: falcon.Response, error: Exception, parameters: Any
) -> None:
    if isinstance(error, falcon.HTTPError):
        raise error
    request.context.outcome = INTERNAL_ERROR.type
    _logger.error("%s %r failed", request.method, request.path, exc_info=error)
    response.status = falcon.code_to_http_status(INTERNAL_ERROR.status)
    response.data = encode_error(INTERNAL_ERROR, "the monitor failed; its log says how")
    response.content_type = falcon.MEDIA_JSON
