"""The server of Hugging Face's Text Generation Inference (TGI).

The sources are `docs/openapi.json` and `docs/source/reference/metrics.md` of TGI.
"""

from __future__ import annotations

from ..domain.models import State, Status
from .load import Load, is_failure, json_fields, total
from .prometheus_text import parse_values
from .protocol import Get, HttpProtocol, count

_RUNNING = "tgi_batch_current_size"
_WAITING = "tgi_queue_size"


class Tgi(HttpProtocol):
    """Reads TGI's server. It refuses connections until its model is loaded.

    State:
        ERROR: `/health` answers 503 (`unhealthy`), which it does if a shard does not answer, or
        500. BUSY: by the requests; the server is full if requests wait.

    Load, from `/metrics`:
        `tgi_batch_current_size` (running) and `tgi_queue_size` (waiting). They are missing until
        the first request. Of tokens, the server counts only those of finished requests, so that
        their rate is not told; the use of its KV cache is not told either.

    Memory is not told.
    """

    name = "tgi"

    def matches(self, get: Get) -> bool:
        """Whether `/info` has the fields of TGI.

        The servers of embeddings have such a route as well, without `max_total_tokens`.
        """
        info = json_fields(get("/info"))
        return isinstance(info.get("model_id"), str) and "max_total_tokens" in info

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        health = get("/health")
        if is_failure(health, 500, 503):
            return Status(State.ERROR)
        health.check()
        metrics = get("/metrics")
        found = parse_values("" if metrics.status == 404 else metrics.text(), (_RUNNING, _WAITING))
        load = Load(count(total(found[_RUNNING])), count(total(found[_WAITING])))
        return load.status(self.busy_when)
