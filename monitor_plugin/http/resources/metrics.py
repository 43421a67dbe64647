"""`/metrics`: chooses the format, and imports the extra `[metrics]` at the first scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import falcon

from ...api.schemas import GpuItem
from ...backends.counters import ModelCounts
from ...backends.registry import EndedBackend
from ...domain.known_models import KnownModel
from ...domain.models import Backend, Limits, LoadedPlugin
from ...domain.units import HostUnit
from ...gpu.reading import GpuReading
from ...readings.sweeper import Sweep
from ...rpc.call import StatusCounts

if TYPE_CHECKING:
    from ..exposition import Exposition

OPENMETRICS = "application/openmetrics-text"
TEXT = "text/plain"
INSTALL = "pip install 'monitor-plugin[metrics]'"


class MetricsSource(NamedTuple):
    """The arguments of `Exposition`, which can be imported only with the extra `[metrics]`."""

    sweep: Callable[[], Sweep]
    list_gpus: Callable[[GpuReading], Sequence[GpuItem]]
    status_counts: Callable[[Backend], StatusCounts | None]
    model_counts: Callable[[], dict[str, ModelCounts]]
    last_exits: Callable[[], Sequence[EndedBackend]]
    plugins: Callable[[], Sequence[LoadedPlugin]]
    own_limits: Callable[[], Limits]
    known_models: Callable[[], Sequence[KnownModel]]
    read_units: Callable[[Iterable[Backend]], Mapping[Backend, HostUnit]]


class MetricsResource:
    """`/metrics`, in Prometheus' text format, or as OpenMetrics if the client prefers that.

    Args:
        source: the functions that return the figures.
    """

    def __init__(self, source: MetricsSource) -> None:
        self._source = source
        self._exposition: Exposition | None = None

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer a scrape."""
        # If a client accepts several media types equally, Falcon 3 chooses the last one and Falcon
        # 4 the first one. So TEXT is listed first and last.
        wanted = request.client_prefers((TEXT, OPENMETRICS, TEXT))
        if self._exposition is None:
            self._exposition = self._make_exposition()
        response.data, response.content_type = self._exposition.render(wanted or TEXT)

    def _make_exposition(self) -> Exposition:
        try:
            from ..exposition import Exposition
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "prometheus_client":
                raise
            raise falcon.HTTPNotImplemented(
                description=f"metrics need the package prometheus_client: {INSTALL}"
            ) from None
        return Exposition(*self._source)
