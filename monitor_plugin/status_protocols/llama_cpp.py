"""The HTTP server of llama.cpp (`llama-server`), with one model or as a router of several.

The sources are `tools/server/README.md` of llama.cpp, and answers of build 11434.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from ..domain.models import State, Status
from .load import Load, Rate, as_object, as_objects, is_failure, json_fields, mean_percent, total
from .prometheus_text import has_metrics, parse_values
from .protocol import Answer, BusyWhen, Get, HttpProtocol, amount, count

_RUNNING = "llamacpp:requests_processing"
_WAITING = "llamacpp:requests_deferred"
_TOKENS = "llamacpp:tokens_predicted_total"
_KV_CACHE = "llamacpp:kv_cache_usage_ratio"
_METRICS = (_RUNNING, _WAITING, _TOKENS, _KV_CACHE)

# A router has at most 4 loaded models by default. With more than these, their load is not added up:
# each model needs a request or two.
_MAX_ADDED_MODELS = 16

_Number = TypeVar("_Number", int, float)


class LlamaCpp(HttpProtocol):
    """Reads llama.cpp's server.

    State:
        UNINITIALIZED: a route answers 503 `Loading model`, as `/health` and all others do; or the
        server sleeps (`--sleep-idle-seconds`, `is_sleeping` of `/props`), so that its model is not
        in memory. ERROR: a route answers 500. BUSY: by the requests; the server is full if all of
        its slots (`total_slots` of `/props`) work, or if requests are deferred.

    Load:
        `/metrics`, which the server has with `--metrics`: `requests_processing` and
        `requests_deferred`; `kv_cache_usage_ratio`, which builds since 2025 do not have. Tokens:
        the increase of `tokens_predicted_total`, which has the finished requests, plus `n_decoded`
        of the slots (`/slots`), which have the others. The server's own figure,
        `predicted_tokens_seconds`, has finished requests only. Without `/metrics`:
        `is_processing` of `/slots`, and no more; that route keeps a server awake, unlike
        `/metrics` and `/props`.

    A router (`role` of `/props`) tells the state of each model in `/models`: `loaded`; `loading`,
    `downloading`, `sleeping` and `unloaded` are UNINITIALIZED, `unloaded` with `failed` is ERROR.
    The other routes get the query `model=NAME&autoload=false`, which does not load it. A backend
    whose model is neither the `id` nor among the `aliases` of one is the router as a whole: READY,
    with the load of its loaded models together.

    Memory is not told.
    """

    name = "llama.cpp"

    def __init__(self, model: str, busy_when: BusyWhen) -> None:
        super().__init__(model, busy_when)
        self._props: dict[str, Any] | None = None
        self._disabled: set[str] = set()  # the paths that the server does not serve
        self._rates: dict[str, Rate] = {}  # by the query of the model

    def matches(self, get: Get) -> bool:
        """Whether `/props` or `/metrics` answers as llama.cpp does; without a key `/v1/models`."""
        props = get("/props")
        if _is_loading(props) or has_metrics(get("/metrics"), "llamacpp:"):
            return True
        if props.status == 401:  # with --api-key, older builds need no key for this route
            models = as_objects(json_fields(get("/v1/models")).get("data"))
            return any(each.get("owned_by") == "llamacpp" for each in models)
        fields = json_fields(props)
        is_own = "default_generation_settings" in fields or "total_slots" in fields
        return is_own and json_fields(get("/health")).get("status") == "ok"

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        try:
            if self._props is None:
                props = self._ask_optional(get, "/props")
                self._props = as_object(props.json()) if props else {}
            if self._props.get("role") == "router":
                return self._read_router(get)
            return self._read_server(get, self._props)
        except _NotReady as error:
            return Status(error.state)

    def _read_server(self, get: Get, props: dict[str, Any]) -> Status:
        load = self._read_metrics(get, "")
        works = load is not None and bool(load.running)
        if not works:
            _ask(get, "/health").check()
            if "is_sleeping" in props:  # builds before December 2025 do not sleep
                props = as_object(_ask(get, "/props").json())
            if props.get("is_sleeping") is True:
                return Status(State.UNINITIALIZED)
        slots = self._read_slots(get, "") if works or load is None else None
        capacity = slots.total if slots else count(props.get("total_slots"))
        return self._merge("", load, slots).status(self.busy_when, capacity)

    def _read_router(self, get: Get) -> Status:
        models = as_objects(as_object(_ask(get, "/models").json()).get("data"))
        for model in models:
            aliases = model.get("aliases")
            names = [model.get("id"), *(aliases if isinstance(aliases, list) else ())]
            if self.model in names:
                return self._read_model(get, model)
        loaded = [each for each in models if _state_in_router(each) is State.READY]
        if not 0 < len(loaded) <= _MAX_ADDED_MODELS:
            return Status(State.READY)
        if len(self._rates) > 2 * _MAX_ADDED_MODELS:  # most are of models that have been unloaded
            self._rates.clear()
        statuses = [self._read_model(get, each) for each in loaded]
        busy = [each.state == State.BUSY for each in statuses]
        is_busy = any(busy) if self.busy_when == "any" else all(busy)
        return Status(
            State.BUSY if is_busy else State.READY,
            None,
            count(_add(each.requests_running for each in statuses)),
            count(_add(each.requests_waiting for each in statuses)),
            amount(_add(each.tokens_per_second for each in statuses)),
        )

    def _read_model(self, get: Get, model: dict[str, Any]) -> Status:
        state = _state_in_router(model)
        if state is not State.READY:
            return Status(state)
        query = f"?model={quote(str(model.get('id')), safe='')}&autoload=false"
        load = self._read_metrics(get, query)
        slots = self._read_slots(get, query) if load is None or load.running else None
        capacity = slots.total if slots else None
        return self._merge(query, load, slots).status(self.busy_when, capacity)

    def _read_metrics(self, get: Get, query: str) -> _Metrics | None:
        answer = self._ask_optional(get, "/metrics" + query)
        if answer is None:
            return None
        found = parse_values(answer.text(), _METRICS)
        return _Metrics(
            count(total(found[_RUNNING])),
            count(total(found[_WAITING])),
            total(found[_TOKENS]),
            mean_percent(found[_KV_CACHE]),
        )

    def _read_slots(self, get: Get, query: str) -> _Slots | None:
        answer = self._ask_optional(get, "/slots" + query)
        if answer is None:
            return None
        slots = as_objects(answer.json())
        if not slots or not all(isinstance(each.get("is_processing"), bool) for each in slots):
            return _Slots(None, None, None)
        working = [each for each in slots if each["is_processing"]]
        return _Slots(len(slots), len(working), _add(map(_decoded, working)))

    def _merge(self, query: str, load: _Metrics | None, slots: _Slots | None) -> Load:
        if load is None:
            return Load(slots.working if slots else None)
        decoded = 0 if load.running == 0 else slots.decoded if slots else None
        tokens = _add([load.tokens, decoded])
        rate = self._rates.setdefault(query, Rate())
        return Load(load.running, load.waiting, rate.update(tokens), load.kv_cache_percent)

    def _ask_optional(self, get: Get, path: str) -> Answer | None:
        """Request a path that the server may not serve; None if it does not."""
        if path in self._disabled:
            return None
        answer = _ask(get, path)
        if answer.status in (404, 501):
            if "?" not in path:  # a router may load a model again with other settings
                self._disabled.add(path)
            return None
        return answer


class _Metrics(NamedTuple):
    running: int | None
    waiting: int | None
    tokens: float | None  # generated for finished requests since the server's start
    kv_cache_percent: float | None


class _Slots(NamedTuple):
    total: int | None
    working: int | None
    decoded: float | None  # tokens generated for the requests that run


class _NotReady(Exception):
    """An answer has told the state."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


def _ask(get: Get, path: str) -> Answer:
    answer = get(path)
    if _is_loading(answer):
        raise _NotReady(State.UNINITIALIZED)
    if is_failure(answer, 500):
        raise _NotReady(State.ERROR)
    return answer


def _is_loading(answer: Answer) -> bool:
    """Whether this is the answer of each route while the model is loaded."""
    return is_failure(answer, 503) and b"loading model" in answer.body.lower()


def _state_in_router(model: dict[str, Any]) -> State:
    status = as_object(model.get("status"))
    if status.get("value") == "loaded":
        return State.READY
    return State.ERROR if status.get("failed") is True else State.UNINITIALIZED


def _decoded(slot: dict[str, Any]) -> int | None:
    """Return how many tokens a slot has generated for its request."""
    token = slot.get("next_token")  # an array with one object; in older builds the object
    fields = as_objects(token)[0] if as_objects(token) else as_object(token)
    return count(fields.get("n_decoded"))


def _add(figures: Iterable[_Number | None]) -> _Number | None:
    """Return the sum; None if a figure is unknown."""
    known = list(figures)
    return None if None in known else sum(each for each in known if each is not None)
