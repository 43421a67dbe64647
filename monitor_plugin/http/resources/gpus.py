"""`/gpus`: the GPUs, and which processes use their memory."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView
from ...api.requests import parse_query
from ...api.schemas import GpuItem, GpusAnswer
from ..messages import requester_of, send_answer, send_response


class GpusResource:
    """`/gpus`: every GPU of this machine, or of all nodes of the cluster.

    Args:
        read: lists the GPUs of this machine.
        cluster: the cluster; None without a cluster.
    """

    def __init__(self, read: Callable[[], list[GpuItem]], cluster: ClusterView | None) -> None:
        self._read = read
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with all GPUs, or those of `node`."""
        query = parse_query(request.query_string)
        if self._cluster:
            send_response(response, self._cluster.gpus(query, requester_of(request)))
        else:
            send_answer(response, GpusAnswer(self._read()))
