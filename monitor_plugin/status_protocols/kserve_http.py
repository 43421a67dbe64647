"""Servers of the Open Inference Protocol v2 over HTTP: Triton, MLServer, KServe.

The source is https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol.
"""

from __future__ import annotations

from urllib.parse import quote

from ..domain.models import State, Status
from .load import is_failure, json_fields
from .protocol import Answer, Get, HttpProtocol


class KserveHttp(HttpProtocol):
    """Reads a server of the Open Inference Protocol.

    State:
        READY: `/v2/health/ready` and `/v2/models/NAME/ready` both answer 200, and no `ready` that
        is false. NAME is the backend's model. UNINITIALIZED: one of them answers 400 or 503, or
        the second one 404 with an `error`, as for a model that the server does not know. If it
        does not serve the second one, the first one decides. ERROR: one of them answers 500. The
        protocol does not tell whether the server works on a request, so that it is never BUSY.

    Memory and load are not told.
    """

    name = "kserve-http"

    def matches(self, get: Get) -> bool:
        """Whether `/v2` has the metadata of a server, or `/v2/health/ready` answers.

        A server that answers each path, also `/v2/health`, is none.
        """
        metadata = json_fields(get("/v2"))
        if isinstance(metadata.get("name"), str) and isinstance(metadata.get("extensions"), list):
            return True
        ready = get("/v2/health/ready")
        is_own = not ready.body or ready.content_type == "application/json"
        return is_own and ready.status in (200, 400, 503) and get("/v2/health").status == 404

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        state = _state(get("/v2/health/ready"))
        if state is not State.READY:
            return Status(state)
        model = get(f"/v2/models/{quote(self.model, safe='')}/ready")
        if model.status == 404:
            is_unknown = b'"error"' in model.body
            return Status(State.UNINITIALIZED if is_unknown else State.READY)
        return Status(_state(model))


def _state(answer: Answer) -> State:
    if is_failure(answer, 500):
        return State.ERROR
    if is_failure(answer, 400, 503):
        return State.UNINITIALIZED
    answer.check()
    is_ready = json_fields(answer).get("ready") is not False
    return State.READY if is_ready else State.UNINITIALIZED
