"""The WSGI application: routes, and how errors are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import falcon

from ..errors import MonitorError
from ..models import LoadedPlugin
from ..settings import Settings
from ..tokens import Tokens
from ..wiring import Parts
from .audit import Audit
from .elsewhere import Elsewhere, SaysWhichNode, TargetsResource, give
from .listing import BackendsResource, EventsResource, HistoryResource, Lister, VersionResource
from .metrics import MetricsResource, MetricsSource
from .openapi import describe_api
from .page import add_page
from .resources import (
    HealthResource,
    HooksResource,
    MonitorResource,
    OpenApiResource,
    ShutdownResource,
)
from .security import Guard, cors
from .wire import INTERNAL_ERROR, encode_error, error_answer, kind_of_status

_logger = logging.getLogger(__name__)


def create_app(
    parts: Parts,
    is_ready: Callable[[], bool],
    plugins: Callable[[], list[LoadedPlugin]],
    settings: Settings,
    tokens: Tokens,
    elsewhere: Elsewhere | None = None,
) -> falcon.App[Any, Any]:
    """Make the application.

    Args:
        parts: read and stop backends, and know what happened.
        is_ready: whether the monitor is started, and not closing.
        plugins: lists what is loaded.
        settings: who may ask; of `http_threads`, shutdowns hold at most half, and those who wait
            for events a quarter.
        tokens: which tokens are valid.
        elsewhere: the other nodes of a cluster.
    """
    says_which = [SaysWhichNode(elsewhere.node)] if elsewhere else []
    guard = Guard(settings, tokens)
    app = falcon.App(middleware=[Audit(), *says_which, guard, *cors(settings)])
    monitor = MonitorResource(parts.model_readings.read, elsewhere)
    at_once = max(1, settings.http_threads // 2)
    stop = ShutdownResource(parts.shutdowns.shutdown, at_once, elsewhere)
    lister = Lister(parts.registry, parts.sweeper, parts.shutdowns)
    backends = BackendsResource(lister, elsewhere)
    events = EventsResource(parts.journal, max(1, settings.http_threads // 4), elsewhere)
    metrics = MetricsSource(
        parts.sweeper.sweep, parts.status_client.counts, parts.model_counter.counts
    )
    health = HealthResource(is_ready)
    for prefix in ("", "/v1"):
        app.add_route(f"{prefix}/backend/monitor", monitor)
        app.add_route(f"{prefix}/backend/shutdown", stop)
        app.add_route(f"{prefix}/backends", backends)
    if elsewhere:
        app.add_route("/cluster/targets", TargetsResource(elsewhere))
    app.add_route("/events", events)
    app.add_route("/history", HistoryResource(parts.history, elsewhere))
    app.add_route("/metrics", MetricsResource(metrics))
    app.add_route("/version", VersionResource())
    app.add_route("/healthz", health)
    app.add_route("/readyz", health, suffix="ready")
    app.add_route("/hooks", HooksResource(plugins, settings.disable_hook))
    document = describe_api(tokens.required, clustered=elsewhere is not None)
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
    answer = error_answer(error)
    request.context.outcome = answer.outcome
    give(response, answer)


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
