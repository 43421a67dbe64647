"""`/ended/ID`: all that is known of the end of a backend."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.ends import postmortem_item
from ...api.requests import parse_end_id, parse_query
from ...backends.registry import EndedBackend
from ..messages import is_admin, send_answer


class EndedResource:
    """`/ended/ID`: the post-mortem of a backend.

    Args:
        find: finds an exit by its number; None if it is not stored.
        cluster: the cluster; None without a cluster. A request for another node is refused.
    """

    def __init__(
        self, find: Callable[[int], EndedBackend | None], cluster: ClusterView | None
    ) -> None:
        self._find = find
        self._cluster = cluster
        self._node = cluster.node if cluster else None

    def on_get(self, request: falcon.Request, response: falcon.Response, id: str) -> None:
        """Answer with the post-mortem, of which only admins get the last output."""
        refuse_other_node(parse_query(request.query_string), self._cluster)
        number = parse_end_id(id)
        ended = None if number is None else self._find(number)
        if ended is None:
            raise falcon.HTTPNotFound(
                description=f"no end with the id {id[:32]!r} is stored; GET /backends lists those "
                "that are, in `ended`"
            )
        send_answer(response, postmortem_item(ended, is_admin(request), self._node))
