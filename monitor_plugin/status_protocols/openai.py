"""Any other server with OpenAI's API, such as a proxy before several servers.

The source is https://platform.openai.com/docs/api-reference/models/list.
"""

from __future__ import annotations

from ..domain.models import State, Status
from .load import as_object, as_objects, is_failure, json_fields
from .protocol import Get, HttpProtocol


class OpenAi(HttpProtocol):
    """Reads a server by OpenAI's list of models.

    State, from `/v1/models`:
        READY: the list has a model. UNINITIALIZED: it is empty. ERROR: the route answers 500. The
        API does not tell whether the server works on a request, so that it is never BUSY.

    Memory and load are not told.
    """

    name = "openai"

    def matches(self, get: Get) -> bool:
        """Whether `/v1/models` answers with a list."""
        return isinstance(json_fields(get("/v1/models")).get("data"), list)

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        answer = get("/v1/models")
        if is_failure(answer, 500):
            return Status(State.ERROR)
        models = as_objects(as_object(answer.json()).get("data"))
        return Status(State.READY if models else State.UNINITIALIZED)
