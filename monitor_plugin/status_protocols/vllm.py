"""The OpenAI-compatible server of vLLM.

The sources are `docs/usage/metrics.md` and `docs/features/sleep_mode.md` of vLLM, and answers of
version 0.32.0.
"""

from __future__ import annotations

from ..domain.models import State, Status
from .load import Load, Rate, as_objects, is_failure, json_fields, mean_percent, total
from .prometheus_text import has_metrics, parse_samples, parse_values
from .protocol import BusyWhen, Get, HttpProtocol, count

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_TOKENS = "vllm:generation_tokens_total"
_KV_CACHE = "vllm:kv_cache_usage_perc"
_OLD_KV_CACHE = "vllm:gpu_cache_usage_perc"  # before version 0.10
_SLEEP = "vllm:engine_sleep_state"
_METRICS = (_RUNNING, _WAITING, _TOKENS, _KV_CACHE, _OLD_KV_CACHE)


class Vllm(HttpProtocol):
    """Reads vLLM's server. It refuses connections until its model is loaded.

    State:
        ERROR: `/health` answers 503, which it does after the engine has died, or 500.
        UNINITIALIZED: an engine sleeps, so that the server cannot generate until it is woken
        (`/wake_up`): the sample of `vllm:engine_sleep_state` with `sleep_state="awake"` is 0. An
        older version without that metric tells in `/is_sleeping`, if it is in development mode.
        BUSY: by the requests; the server is full if requests wait.

    Load, from `/metrics`:
        `vllm:num_requests_running`, `vllm:num_requests_waiting`, and per second the increase of
        `vllm:generation_tokens_total`, each the sum over the engines; `vllm:kv_cache_usage_perc`
        or the older `vllm:gpu_cache_usage_perc`, from 0 to 1, the mean over the engines. With
        `--disable-log-stats` the server has none of them.

    Memory is not told.
    """

    name = "vllm"

    def __init__(self, model: str, busy_when: BusyWhen) -> None:
        super().__init__(model, busy_when)
        self._tokens = Rate()
        self._may_be_asked_for_sleep = True

    def matches(self, get: Get) -> bool:
        """Whether `/metrics` has metrics of vLLM, or `/v1/models` and `/health` answer as it does.

        A proxy may pass on `/v1/models` alone. vLLM's `/health` has no body.
        """
        if has_metrics(get("/metrics"), "vllm:"):
            return True
        models = as_objects(json_fields(get("/v1/models")).get("data"))
        health = get("/health")
        is_own = any(each.get("owned_by") == "vllm" for each in models)
        return is_own and health.status in (200, 503) and not health.body

    def read(self, get: Get) -> Status:
        """Read the status; see the class."""
        health = get("/health")
        if is_failure(health, 500, 503):
            return Status(State.ERROR)
        health.check()
        metrics = get("/metrics")
        text = "" if metrics.status == 404 else metrics.text()
        found = parse_values(text, _METRICS)
        states = parse_samples(text, [_SLEEP])[_SLEEP]
        awake = [each.value for each in states if each.labels.get("sleep_state") == "awake"]
        if 0 in awake or (not awake and self._says_it_sleeps(get)):
            return Status(State.UNINITIALIZED)
        load = Load(
            count(total(found[_RUNNING])),
            count(total(found[_WAITING])),
            self._tokens.update(total(found[_TOKENS])),
            mean_percent(found[_KV_CACHE] or found[_OLD_KV_CACHE]),
        )
        return load.status(self.busy_when)

    def _says_it_sleeps(self, get: Get) -> bool:
        if not self._may_be_asked_for_sleep:
            return False
        answer = get("/is_sleeping")
        self._may_be_asked_for_sleep = answer.status == 200
        return json_fields(answer).get("is_sleeping") is True
