"""What answers with lists: of backends and ends, of figures over time, of what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from importlib import metadata

import falcon

from ..errors import InvalidRequest
from ..history import History
from ..journal import Journal
from ..names import checked_model
from ..registry import Registry
from ..shutdown import Shutdowns
from ..sweep import Sweeper
from .elsewhere import Elsewhere, asker_of, give, refuse_other_node
from .listing_wire import (
    BackendsAnswer,
    EventsAnswer,
    HistoryAnswer,
    VersionAnswer,
    backend_item,
    end_item,
    event_item,
    history_item,
    machine,
)
from .parsing import parse_query
from .wire import encode

MOST_WAIT_SECONDS = 20.0
# For those who would wait, and find that others do already.
_POLL_SECONDS = 1.0
_MOST_DIGITS = 18


class Lister:
    """Lists backends, and the last that ended.

    Args:
        registry: knows the ends.
        sweeper: reads the backends.
        shutdowns: knows how far each shutdown is.
        node: this node's name, in a cluster.
    """

    def __init__(
        self, registry: Registry, sweeper: Sweeper, shutdowns: Shutdowns, node: str | None = None
    ) -> None:
        self._registry = registry
        self._sweeper = sweeper
        self._shutdowns = shutdowns
        self._node = node

    def list(self, model: str | None, fresh: bool) -> BackendsAnswer:
        """List those of one model or of all, read now or as the last sweep found them."""
        observations = self._sweeper.sweep(model) if fresh else self._sweeper.last(model)
        progress = self._shutdowns.progress()
        now = time.time()
        return BackendsAnswer(
            [
                backend_item(each, progress.get(each.backend), now, self._node)
                for each in observations
            ],
            [
                end_item(each, self._node)
                for each in reversed(self._registry.ends())
                if model in (None, each.backend.model)
            ],
            machine(),
        )


class BackendsResource:
    """`/backends`: every backend, and the last that ended.

    Args:
        lister: lists this machine's.
        elsewhere: the other nodes of a cluster.
    """

    def __init__(self, lister: Lister, elsewhere: Elsewhere | None) -> None:
        self._lister = lister
        self._elsewhere = elsewhere

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the list, of one model if `model` names it, read now unless `fresh=false`."""
        query = parse_query(request.query_string)
        model = _model(query)
        fresh = _flag(query, "fresh", default=True)
        if self._elsewhere:
            give(response, self._elsewhere.backends(model, fresh, query, asker_of(request)))
            return
        response.data = encode(self._lister.list(model, fresh))
        response.content_type = falcon.MEDIA_JSON


class HistoryResource:
    """`/history`: CPU and memory of each backend over the last minutes.

    Args:
        history: where they stand.
        elsewhere: the other nodes of a cluster, of which it answers for none.
    """

    def __init__(self, history: History, elsewhere: Elsewhere | None) -> None:
        self._history = history
        self._elsewhere = elsewhere
        self._node = elsewhere.node if elsewhere else None

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the points of all, or of one model if `model` names it."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._elsewhere)
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
        journal: where it stands.
        waiting_at_once: how many requests may wait for something to happen; each holds a thread.
        elsewhere: the other nodes of a cluster, of which it answers for none.
    """

    def __init__(self, journal: Journal, waiting_at_once: int, elsewhere: Elsewhere | None) -> None:
        self._journal = journal
        self._elsewhere = elsewhere
        self._node = elsewhere.node if elsewhere else None
        self._places = threading.Semaphore(waiting_at_once)

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with what is kept; `wait` is honoured while few do."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._elsewhere)
        after = _number(query, "after")
        seconds = min(MOST_WAIT_SECONDS, _seconds(query, "wait"))
        waits = seconds > 0 and self._places.acquire(blocking=False)
        try:
            page = self._journal.after(after, seconds if waits else 0.0)
        finally:
            if waits:
                self._places.release()
        response.data = encode(
            EventsAnswer(
                [event_item(each, self._node) for each in page.happenings],
                page.next,
                page.gap,
                0.0 if waits else _POLL_SECONDS,
            )
        )
        response.content_type = falcon.MEDIA_JSON


class VersionResource:
    """`/version`: which program this is."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with its name and version."""
        answer = VersionAnswer("monitor-plugin", metadata.version("monitor-plugin"))
        response.data = encode(answer)
        response.content_type = falcon.MEDIA_JSON


def _model(query: Mapping[str, str]) -> str | None:
    return checked_model(query["model"]) if "model" in query else None


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
