"""`/events` and `/history`: what happened to the backends of this node, and their usage."""

from __future__ import annotations

import threading
from functools import partial

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.requests import parse_event_id, parse_model, parse_query, parse_seconds
from ...api.schemas import EventsAnswer, HistoryAnswer, HistoryItem, NodeHistoryItem
from ...concurrency.blocking import BlockingObserver
from ...telemetry.event_log import EventLog, event_to_dict
from ...telemetry.time_series import TimeSeries
from ..messages import send_answer

_MAX_WAIT_SECONDS = 20.0
# When to send the next request, for a client that has not waited: it did not want to, or too many
# other requests are waiting.
_POLL_SECONDS = 1.0


class EventsResource:
    """`/events`: the events after the last event that the client has.

    Args:
        event_log: holds the last events.
        wait_limit: maximum number of requests that wait for an event; each occupies a thread.
        blocking: is entered while a request waits.
        cluster: the cluster, of which other nodes' events are refused; None without a cluster.
    """

    def __init__(
        self,
        event_log: EventLog,
        wait_limit: int,
        blocking: BlockingObserver,
        cluster: ClusterView | None,
    ) -> None:
        self._event_log = event_log
        self._blocking = blocking
        self._cluster = cluster
        self._node = cluster.node if cluster else None
        self._slots = threading.Semaphore(wait_limit)

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the events after `after`; wait up to `wait` seconds if there are none."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        after = parse_event_id(query, "after")
        seconds = min(_MAX_WAIT_SECONDS, parse_seconds(query, "wait"))
        waits = seconds > 0 and self._slots.acquire(blocking=False)
        if waits:
            try:
                with self._blocking:
                    batch = self._event_log.after(after, seconds)
            finally:
                self._slots.release()
        else:
            batch = self._event_log.after(after)
        answer = EventsAnswer(
            [event_to_dict(each, self._node) for each in batch.events],
            batch.next,
            batch.gap,
            0.0 if waits else _POLL_SECONDS,
        )
        send_answer(response, answer)


class HistoryResource:
    """`/history`: CPU and memory of each backend over the last minutes.

    Args:
        time_series: holds the points.
        cluster: the cluster, of which other nodes' history is refused; None without a cluster.
    """

    def __init__(self, time_series: TimeSeries, cluster: ClusterView | None) -> None:
        self._time_series = time_series
        self._cluster = cluster
        self._node = cluster.node if cluster else None

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the points of all backends, or of those of `model`."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        times, series = self._time_series.read(parse_model(query))
        make = HistoryItem if self._node is None else partial(NodeHistoryItem, node=self._node)
        items = [
            make(each.backend.model, each.backend.pid, each.cpu_percent, each.memory)
            for each in series
        ]
        send_answer(response, HistoryAnswer(self._time_series.interval_seconds, times, items))
