"""The server of Ollama.

The source is `docs/api.md` of Ollama.
"""

from __future__ import annotations

from typing import Any

from ..domain.models import Memory, State, Status
from .load import as_object, as_objects, is_failure, json_fields, total
from .protocol import Get, HttpProtocol, count


class Ollama(HttpProtocol):
    """Reads Ollama's server, which loads a model at the first request and unloads it when idle.

    State, from `/api/ps`, the list of the models in memory:
        READY: the model is in the list. UNINITIALIZED: it is not. ERROR: the route answers 500. A
        backend whose model is none of `/api/tags`, the list of all models, is the server as a
        whole, which is READY. The server does not tell whether it works on a request, so that it
        is never BUSY.

    Memory:
        `size` of the model in `/api/ps`, and of that `size_vram` in the component `vram`; for the
        server as a whole, the sums over the models in memory.

    Load is not told.
    """

    name = "ollama"

    def matches(self, get: Get) -> bool:
        """Whether `/api/version` and `/api/ps` answer as Ollama does.

        Other servers have some of Ollama's routes, but not both of these.
        """
        version = json_fields(get("/api/version")).get("version")
        models = json_fields(get("/api/ps")).get("models") if isinstance(version, str) else None
        return isinstance(models, list)

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        answer = get("/api/ps")
        if is_failure(answer, 500):
            return Status(State.ERROR)
        loaded = as_objects(as_object(answer.json()).get("models"))
        own = [each for each in loaded if self._is_own(each)]
        if own:
            return Status(State.READY, _memory(own))
        tags = get("/api/tags")
        known = as_objects(json_fields(tags).get("models"))
        if tags.status != 200 or any(self._is_own(each) for each in known):
            return Status(State.UNINITIALIZED)
        return Status(State.READY, _memory(loaded))

    def _is_own(self, model: dict[str, Any]) -> bool:
        """Whether a model is that of the backend. The tag `latest` may be left out."""
        names = {self.model.lower(), f"{self.model.lower()}:latest"}
        return any(str(model.get(field)).lower() in names for field in ("name", "model"))


def _memory(models: list[dict[str, Any]]) -> Memory | None:
    """Return the memory of models together; None if the server does not tell it for each."""
    size = count(total(each.get("size") for each in models))
    video = count(total(each.get("size_vram") for each in models))
    if size is None:
        return None
    return Memory(size, {} if video is None else {"vram": video})
