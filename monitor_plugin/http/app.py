"""The WSGI application: its routes, and the responses to errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import falcon

from ..api.cluster_view import ClusterView
from ..api.errors import encode_error, error_response, http_error_kind
from ..api.lister import Lister
from ..api.member_lister import MemberLister
from ..api.results import CheckItem
from ..api.schemas import GpuItem
from ..backends.log_reader import Log
from ..backends.registry import EndedBackend
from ..concurrency.blocking import BlockingObserver
from ..config.settings import Settings
from ..config.tokens import Tokens
from ..domain.errors import MonitorError
from ..domain.fits import Fit
from ..domain.models import Freed, LoadedPlugin
from ..readings.model_reader import SharedReading
from ..telemetry.event_log import EventLog
from ..telemetry.peaks import PeakStore
from ..telemetry.time_series import TimeSeries
from .messages import send_response
from .middleware.audit import Audit
from .middleware.guard import Guard, cors
from .openapi import describe_api
from .resources.backends import BackendsResource, TargetsResource
from .resources.ended import EndedResource
from .resources.gpus import GpusResource
from .resources.load import LoadResource, RestartResource, StartSlots
from .resources.log import LogResource
from .resources.members import MembersResource
from .resources.metrics import MetricsResource, MetricsSource
from .resources.monitor import MonitorResource
from .resources.page import add_page
from .resources.peaks import FitsResource, PeaksResource
from .resources.service import HealthResource, HooksResource, OpenApiResource, VersionResource
from .resources.shutdown import ShutdownResource
from .resources.telemetry import EventsResource, HistoryResource

_logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    tokens: Tokens,
    *,
    read: Callable[[str, int | None], SharedReading],
    shutdown: Callable[[str, bool, int | None], Freed],
    start: Callable[[str], None],
    is_loaded: Callable[[str], bool],
    restart: Callable[[str, bool, int | None], None],
    lister: Lister,
    member_lister: MemberLister,
    read_log: Callable[[str, int | None, str, int, int | None], Log],
    find_exit: Callable[[int], EndedBackend | None],
    read_gpus: Callable[[], list[GpuItem]],
    event_log: EventLog,
    time_series: TimeSeries,
    peaks: PeakStore,
    check_fit: Callable[[str], Fit],
    metrics: MetricsSource,
    is_ready: Callable[[], bool],
    unseen: str | None,
    examine: Callable[[], list[CheckItem]],
    plugins: Callable[[], list[LoadedPlugin]],
    blocking: BlockingObserver,
    cluster: ClusterView | None = None,
) -> falcon.App[Any, Any]:
    """Make the application.

    Args:
        settings: the monitor's settings. Requests that wait for a shutdown take at most half of
            `http_threads`, requests that wait for a start as many (but at least two), and requests
            that wait for an event a quarter.
        tokens: the valid tokens.
        read: reads a model, or its backend with a PID.
        shutdown: stops a model, by force or not, or its backend with a PID.
        start: starts a model, and waits until it is ready.
        is_loaded: whether a start of a model would have nothing to do.
        restart: stops a model, by force or not, or its backend with a PID, and starts it again.
        lister: lists the backends.
        member_lister: lists the members of a model's backends.
        read_log: reads the log of a model's process: see `LogReader.read`.
        find_exit: finds an exit by its number.
        read_gpus: lists the GPUs.
        event_log: holds the last events.
        time_series: holds the usage of the last minutes.
        peaks: holds the peaks of models.
        check_fit: tells whether a model fits; may wait for a driver.
        metrics: gives the figures of `/metrics`.
        is_ready: whether the monitor is started and not closing.
        unseen: what the monitor cannot see of other users' processes; None if it sees all.
        examine: checks what the monitor can see and do.
        plugins: lists the loaded plugins.
        blocking: is entered while a request waits for a shutdown, a start or an event.
        cluster: the cluster; None without a cluster.
    """
    guard = Guard(settings, tokens, cluster.node if cluster else None)
    app = falcon.App(middleware=[Audit(), guard, *cors(settings)])
    monitor = MonitorResource(read, cluster)
    stop_limit = max(1, settings.http_threads // 2)
    stop = ShutdownResource(shutdown, stop_limit, blocking, unseen is not None, cluster)
    # Starts wait for minutes. The threads beyond `http_threads`, which the server adds while
    # requests are blocked, are then for readings. Two starts of one model may always share one.
    slots = StartSlots(max(2, settings.http_threads // 2), blocking)
    wait_limit = max(1, settings.http_threads // 4)
    load = LoadResource(start, is_loaded, slots, cluster)
    load_again = RestartResource(restart, slots, cluster)
    backends = BackendsResource(lister, cluster)
    for prefix in ("", "/v1"):
        app.add_route(f"{prefix}/backend/monitor", monitor)
        app.add_route(f"{prefix}/backend/shutdown", stop)
        app.add_route(f"{prefix}/backend/load", load)
        app.add_route(f"{prefix}/backend/restart", load_again)
        app.add_route(f"{prefix}/backends", backends)
    app.add_route("/backend/members", MembersResource(member_lister, cluster))
    app.add_route("/backend/log", LogResource(read_log, blocking, cluster))
    app.add_route("/ended/{id}", EndedResource(find_exit, cluster))
    app.add_route("/gpus", GpusResource(read_gpus, cluster))
    if cluster:
        app.add_route("/cluster/targets", TargetsResource(cluster))
    app.add_route("/events", EventsResource(event_log, wait_limit, blocking, cluster))
    app.add_route("/history", HistoryResource(time_series, cluster))
    app.add_route("/models/peaks", PeaksResource(peaks, cluster))
    app.add_route("/fits", FitsResource(check_fit, blocking, cluster))
    app.add_route("/metrics", MetricsResource(metrics))
    app.add_route("/version", VersionResource())
    health = HealthResource(is_ready, unseen, examine)
    app.add_route("/healthz", health)
    app.add_route("/readyz", health, suffix="ready")
    app.add_route("/hooks", HooksResource(plugins, settings.disable_hook))
    document = describe_api(tokens.required, clustered=cluster is not None)
    app.add_route("/openapi.json", OpenApiResource(document))
    add_page(app)
    app.set_error_serializer(_serialize_http_error)
    app.add_error_handler(MonitorError, _handle_monitor_error)
    app.add_error_handler(Exception, _handle_unexpected_error)
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
    kind = http_error_kind(status)
    request.context.outcome = kind.type
    response.data = encode_error(kind, message or "")
    response.content_type = falcon.MEDIA_JSON


def _handle_monitor_error(
    request: falcon.Request, response: falcon.Response, error: BaseException, parameters: Any
) -> None:
    result = error_response(error)
    request.context.outcome = result.outcome
    send_response(response, result)


def _handle_unexpected_error(
    request: falcon.Request, response: falcon.Response, error: Exception, parameters: Any
) -> None:
    if isinstance(error, falcon.HTTPError):
        raise error
    _logger.error("%s %r failed", request.method, request.path, exc_info=error)
    _handle_monitor_error(request, response, error, parameters)
