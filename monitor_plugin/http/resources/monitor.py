"""`/backend/monitor`: reads a model."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView
from ...api.requests import MonitorBody, NodeMonitorBody, parse_body, parse_pid, parse_query
from ...api.results import shared_response
from ...domain.model_name import validate_model_name
from ...readings.model_reader import SharedReading
from ..messages import read_body, requester_of, send_response


class MonitorResource:
    """`/backend/monitor`: a reading of a model, which the query or a JSON body names.

    Args:
        read: reads a model, or its backend with a PID.
        cluster: the cluster; None without a cluster.
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
        pid = parse_pid(query, default=pid)
        model = validate_model_name(model)
        if self._cluster:
            node = query.get("node", node)
            reading = self._cluster.monitor(model, pid, node, requester_of(request))
        else:
            reading = shared_response(self._read(model, pid))
        send_response(response, reading)

    on_post = on_get  # the documented curl command sends a POST
