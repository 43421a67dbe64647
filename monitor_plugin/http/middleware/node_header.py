"""The header that names the node of a cluster that answered."""

from __future__ import annotations

import falcon

from ...api.cluster_view import NODE_HEADER


class NodeHeader:
    """Falcon middleware that names this node in answers which the cluster did not give.

    Clients that the guard refuses do not get the name.
    """

    def __init__(self, node: str) -> None:
        self._node = node

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Set the header, unless the answer names a node."""
        caller = request.context.get("caller")  # not set if Falcon itself refused the request
        if caller and response.get_header(NODE_HEADER) is None:
            response.set_header(NODE_HEADER, self._node)
