"""`/metrics`: which format is wanted, and what it needs to be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import falcon

from ...backends.counters import ModelCounts
from ...domain.models import Backend
from ...domain.observation import Observation
from ...rpc.call_stats import StatusCounts

if TYPE_CHECKING:
    from ..exposition import Exposition

OPENMETRICS = "application/openmetrics-text"
TEXT = "text/plain"
INSTALL = "pip install 'monitor-plugin[metrics]'"


class MetricsSource(NamedTuple):
    """Where the figures come from.

    Attributes:
        sweep: observes all backends.
        status_counts: counts the `Status` calls of one; None where it had none.
        model_counts: counts the ends and shutdowns by model.
    """

    sweep: Callable[[], Sequence[Observation]]
    status_counts: Callable[[Backend], StatusCounts | None]
    model_counts: Callable[[], dict[str, ModelCounts]]


class MetricsResource:
    """`/metrics`, in Prometheus' text format, or in OpenMetrics where that is preferred.

    Args:
        source: gives the figures.
    """

    def __init__(self, source: MetricsSource) -> None:
        self._source = source
        self._exposition: Exposition | None = None

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer a scrape."""
        # TEXT stands at both ends as Falcon 3 takes the last of equals, and Falcon 4 the first.
        wanted = request.client_prefers((TEXT, OPENMETRICS, TEXT))
        exposition = self._made()
        response.data, response.content_type = exposition.render(wanted or TEXT)

    def _made(self) -> Exposition:
        if self._exposition is None:
            try:
                # Here alone, as nobody else needs it.
                from ..exposition import Exposition
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "prometheus_client":
                    raise
                raise falcon.HTTPNotImplemented(
                    description=f"metrics need the package prometheus_client: {INSTALL}"
                ) from None
            self._exposition = Exposition(self._source)
        return self._exposition
