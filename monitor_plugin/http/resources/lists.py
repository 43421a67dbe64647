"""What answers with lists: of backends and ends, of figures over time, of what happened."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import metadata

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.lister import Lister
from ...api.requests import parse_query
from ...api.results import encode
from ...api.schemas import (
    EventsAnswer,
    HistoryAnswer,
    VersionAnswer,
    history_item,
)
from ...domain.errors import InvalidRequest
from ...domain.model_name import validate_model_name
from ...telemetry.event_log import EventLog, event_item
from ...telemetry.time_series import TimeSeries
from ..responses import requester_of, send_response

MOST_WAIT_SECONDS = 20.0
# For those who would wait, and find that others do already.
_POLL_SECONDS = 1.0
_MOST_DIGITS = 18


class BackendsResource:
    """`/backends`: every backend, and the last that ended.

    Args:
        lister: lists this machine's.
        cluster: the other nodes of a cluster.
    """

    def __init__(self, lister: Lister, cluster: ClusterView | None) -> None:
        self._lister = lister
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the list, of one model if `model` names it, read now unless `fresh=false`."""
        query = parse_query(request.query_string)
        model = _model(query)
        fresh = _flag(query, "fresh", default=True)
        if self._cluster:
            send_response(
                response, self._cluster.backends(model, fresh, query, requester_of(request))
            )
            return
        response.data = encode(self._lister.list(model, fresh))
        response.content_type = falcon.MEDIA_JSON


class HistoryResource:
    """`/history`: CPU and memory of each backend over the last minutes.

    Args:
        history: where they stand.
        cluster: the other nodes of a cluster, of which it answers for none.
    """

    def __init__(self, history: TimeSeries, cluster: ClusterView | None) -> None:
        self._history = history
        self._cluster = cluster
        self._node = cluster.node if cluster else None

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the points of all, or of one model if `model` names it."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        times, series = self._history.read(_model(query))
        response.data = encode(
            HistoryAnswer(
                self._history.interval_seconds,
                times,
                [history_item(each, self._node) for each in series],
            )
        )
        response.content_type = falcon.MEDIA_JSON


class EventsResource:
    """`/events`: what happened after an id.

    Args:
        event_log: where it stands.
        waiting_at_once: how many requests may wait for something to happen; each holds a thread.
        cluster: the other nodes of a cluster, of which it answers for none.
    """

    def __init__(
        self, event_log: EventLog, waiting_at_once: int, cluster: ClusterView | None
    ) -> None:
        self._event_log = event_log
        self._cluster = cluster
        self._node = cluster.node if cluster else None
        self._places = threading.Semaphore(waiting_at_once)

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with what is kept; `wait` is honoured while few do."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        after = _number(query, "after")
        seconds = min(MOST_WAIT_SECONDS, _seconds(query, "wait"))
        waits = seconds > 0 and self._places.acquire(blocking=False)
        try:
            page = self._event_log.after(after, seconds if waits else 0.0)
        finally:
            if waits:
                self._places.release()
        response.data = encode(
            EventsAnswer(
                [event_item(each, self._node) for each in page.events],
                page.next,
                page.gap,
                0.0 if waits else _POLL_SECONDS,
            )
        )
        response.content_type = falcon.MEDIA_JSON


class TargetsResource:
    """`/cluster/targets`: all nodes, for Prometheus' service discovery by HTTP."""

    def __init__(self, cluster: ClusterView) -> None:
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the list."""
        send_response(response, self._cluster.targets())


class VersionResource:
    """`/version`: which program this is."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with its name and version."""
        answer = VersionAnswer("monitor-plugin", metadata.version("monitor-plugin"))
        response.data = encode(answer)
        response.content_type = falcon.MEDIA_JSON


def _model(query: Mapping[str, str]) -> str | None:
    return validate_model_name(query["model"]) if "model" in query else None


def _flag(query: Mapping[str, str], name: str, default: bool) -> bool:
    text = query.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name}={text!r} is neither true nor false")
    return text in ("true", "1")


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise InvalidRequest(f"{name}={text!r} is no id of an event: take `next` of an answer")
    return int(text)


def _seconds(query: Mapping[str, str], name: str) -> float:
    text = query.get(name, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidRequest(f"{name}={text!r} is no number of seconds")
    return seconds
