"""The header that says which node of a cluster answered."""

from __future__ import annotations

import falcon

from ...api.cluster_view import NODE_HEADER


class NodeHeader:
    """Middleware: what answers without the cluster says which node it was; to those let in."""

    def __init__(self, node: str) -> None:
        self._node = node

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Name this node, unless the answer names one."""
        caller = request.context.get("caller")  # none where the framework refused it at once
        if caller and response.get_header(NODE_HEADER) is None:
            response.set_header(NODE_HEADER, self._node)
