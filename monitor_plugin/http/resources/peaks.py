"""`/models/peaks` and `/fits`: the peaks of this node's models, and whether a model fits."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.peaks import fits_answer, peaks_answer
from ...api.requests import parse_model, parse_query, parse_required_model
from ...concurrency.blocking import BlockingObserver
from ...domain.fits import Fit
from ...telemetry.peaks import PeakStore
from ..messages import send_answer


class PeaksResource:
    """`/models/peaks`: the most memory that each model ever held.

    Args:
        peaks: stores the peaks.
        cluster: the cluster; None without a cluster. A request for another node is refused.
    """

    def __init__(self, peaks: PeakStore, cluster: ClusterView | None) -> None:
        self._peaks = peaks
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the peaks of all models, or of `model`."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        send_answer(response, peaks_answer(self._peaks.read(parse_model(query))))


class FitsResource:
    """`/fits`: whether one more backend of a model fits into the memory of this node.

    Args:
        check: tells whether a model fits; may wait for a driver.
        blocking: entered while the check may wait.
        cluster: the cluster; None without a cluster. A request for another node is refused.
    """

    def __init__(
        self, check: Callable[[str], Fit], blocking: BlockingObserver, cluster: ClusterView | None
    ) -> None:
        self._check = check
        self._blocking = blocking
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer whether `model` fits."""
        query = parse_query(request.query_string)
        refuse_other_node(query, self._cluster)
        model = parse_required_model(query, "/fits")
        with self._blocking:
            fit = self._check(model)
        send_answer(response, fits_answer(fit))
