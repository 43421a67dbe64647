"""The server of SGLang.

The sources are `docs/references/production_metrics.md` of SGLang, and the routes in
`srt/entrypoints/http_server.py` and `v1_loads.py` of version 0.5.23.
"""

from __future__ import annotations

from time import monotonic

from ..domain.models import State, Status
from .load import Load, as_objects, is_failure, json_fields, mean_percent, total
from .prometheus_text import Sample, has_metrics, parse_samples
from .protocol import Answer, BusyWhen, Get, HttpProtocol, count

_RUNNING = "sglang:num_running_reqs"
_WAITING = "sglang:num_queue_reqs"
_TOKENS = "sglang:gen_throughput"
_KV_CACHE = "sglang:token_usage"
_METRICS = (_RUNNING, _WAITING, _TOKENS, _KV_CACHE)

_SLOW_SECONDS = 0.5


class Sglang(HttpProtocol):
    """Reads SGLang's server.

    State:
        UNINITIALIZED: `/ready` answers 503: the server starts, is paused, or ends. A version
        without that route answers `/health` with 503 while it starts; later that means ERROR.
        ERROR: one of these routes answers 500. BUSY: by the requests; the server is full if
        requests wait. `/health` generates a token in some versions, which takes a second: once it
        was slow, it is not requested any more.

    Load, from `/metrics`, which the server has with `--enable-metrics`:
        `sglang:num_running_reqs`, `sglang:num_queue_reqs` and `sglang:gen_throughput`, each the sum
        over the data-parallel ranks; `sglang:token_usage`, from 0 to 1, their mean. Without that
        route, from `/v1/loads`: `num_running_reqs`, `num_waiting_reqs`, `gen_throughput` and
        `token_usage` of each rank.

    Memory is not told.
    """

    name = "sglang"

    def __init__(self, model: str, busy_when: BusyWhen) -> None:
        super().__init__(model, busy_when)
        self._absent: set[str] = set()  # the paths that the server does not serve
        self._was_healthy = self._is_health_slow = False

    def matches(self, get: Get) -> bool:
        """Whether `/metrics` has metrics of SGLang, or `/v1/models` and its own routes tell.

        A proxy may pass on `/v1/models` alone.
        """
        if has_metrics(get("/metrics"), "sglang:"):
            return True
        models = as_objects(json_fields(get("/v1/models")).get("data"))
        if not any(each.get("owned_by") == "sglang" for each in models):
            return False
        paths = ("/model_info", "/get_model_info")  # the newer name, and the older one
        return any("is_generation" in json_fields(get(path)) for path in paths)

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        state = self._read_state(get)
        if state is not State.READY:
            return Status(state)
        return self._read_load(get).status(self.busy_when)

    def _read_state(self, get: Get) -> State:
        ready = self._ask(get, "/ready")
        if ready:
            return _state(ready, when_503=State.UNINITIALIZED)
        if self._is_health_slow:
            return State.READY
        started = monotonic()
        try:
            health = get("/health")
        finally:
            self._is_health_slow = monotonic() - started > _SLOW_SECONDS
        when_503 = State.ERROR if self._was_healthy else State.UNINITIALIZED
        state = _state(health, when_503)
        self._was_healthy |= state is State.READY
        return state

    def _read_load(self, get: Get) -> Load:
        metrics = self._ask(get, "/metrics")
        if metrics:
            found = parse_samples(metrics.text(), _METRICS)
            figures = [_by_rank(found[name]) for name in _METRICS]
        else:
            loads = self._ask(get, "/v1/loads")
            if not loads:
                get("/v1/models").check()
                return Load()
            ranks = as_objects(json_fields(loads).get("loads"))
            names = ("num_running_reqs", "num_waiting_reqs", "gen_throughput", "token_usage")
            figures = [[rank.get(name) for rank in ranks] for name in names]
        running, waiting, tokens, kv_cache = figures
        return Load(
            count(total(running)), count(total(waiting)), total(tokens), mean_percent(kv_cache)
        )

    def _ask(self, get: Get, path: str) -> Answer | None:
        """Request a path that the server may not serve; None if it does not."""
        if path in self._absent:
            return None
        answer = get(path)
        if answer.status == 404:
            self._absent.add(path)
            return None
        return answer


def _state(answer: Answer, when_503: State) -> State:
    if is_failure(answer, 500):
        return State.ERROR
    if is_failure(answer, 503):
        return when_503
    answer.check()
    return State.READY


def _by_rank(samples: list[Sample]) -> list[object]:
    """Return one value for each data-parallel rank.

    With `--enable-metrics-for-all-schedulers`, each tensor-parallel rank reports the figures of its
    data-parallel rank.
    """
    values: dict[str, float] = {}
    for labels, value in samples:
        rank = labels.get("dp_rank", "")
        values[rank] = max(value, values.get(rank, value))
    return list(values.values())
