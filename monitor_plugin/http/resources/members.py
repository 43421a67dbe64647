"""`/backend/members`: the processes that belong to the backends of a model."""

from __future__ import annotations

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.member_lister import MemberLister
from ...api.requests import parse_pid, parse_query, parse_required_model
from ..messages import send_answer


class MembersResource:
    """`/backend/members`: the members of a model's backends.

    Args:
        lister: lists the members.
        cluster: the cluster; None without a cluster. A request for another node is refused.
    """

    def __init__(self, lister: MemberLister, cluster: ClusterView | None) -> None:
        self._lister = lister
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the members of `model`, or of its backend `pid`."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        model = parse_required_model(query, "/backend/members")
        send_answer(response, self._lister.list(model, parse_pid(query, default=None)))
