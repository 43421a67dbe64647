"""`/backends` and `/cluster/targets`: the lists of backends and of nodes."""

from __future__ import annotations

import falcon

from ...api.cluster_view import ClusterView
from ...api.lister import Lister
from ...api.requests import parse_flag, parse_model, parse_query
from ..messages import is_admin, requester_of, send_answer, send_response


class BackendsResource:
    """`/backends`: every backend, and the last ones that have ended.

    Args:
        lister: lists the backends of this machine.
        cluster: the cluster; None without a cluster.
    """

    def __init__(self, lister: Lister, cluster: ClusterView | None) -> None:
        self._lister = lister
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with all backends, or those of `model`; read them now unless `fresh=false`."""
        query = parse_query(request.query_string)
        model = parse_model(query)
        fresh = parse_flag(query, "fresh", default=True)
        if self._cluster:
            backends = self._cluster.backends(model, fresh, query, requester_of(request))
            send_response(response, backends)
        else:
            listed = self._lister.list(model, fresh, with_output=is_admin(request))
            send_answer(response, listed)


class TargetsResource:
    """`/cluster/targets`: all nodes, for Prometheus' service discovery by HTTP."""

    def __init__(self, cluster: ClusterView) -> None:
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the nodes."""
        send_response(response, self._cluster.targets())
