"""`/openapi.json`: every route, parameter, answer and error, made from the structs of `wire.py`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any

import msgspec

from ..api.cluster_schemas import ClusterBackendsAnswer, TargetGroup
from ..api.requests import (
    MODEL_NAME_SCHEMA,
    MonitorBody,
    NodeMonitorBody,
    NodeShutdownBody,
    ShutdownBody,
)
from ..api.results import (
    ErrorAnswer,
    HealthAnswer,
    HooksAnswer,
    SampleAnswer,
    StatusAnswer,
    StoppedAnswer,
)
from ..api.schemas import BackendsAnswer, EventsAnswer, HistoryAnswer, VersionAnswer
from .resources.metrics import OPENMETRICS, TEXT
from .resources.page import ASSET_TYPES, ASSETS

_JSON = "application/json"
_REF = "#/components/schemas/{name}"

_ERRORS = {
    400: "the model's name is missing or invalid, the body is no JSON object, the query no UTF-8",
    401: "no token was sent, or one that is not valid",
    403: "the token's role is too low, or the host or the site that asks is not allowed",
    404: "there is nothing at this path",
    405: "the path does not take this method",
    409: "a hook refused the shutdown; nothing was stopped",
    413: "the body is larger than 64 KiB",
    415: "the body's content type is not application/json",
    500: "the model is not loaded, its process cannot be read, or it could not be stopped",
    501: "the extra [metrics] is not installed",
    503: "too many shutdowns are under way; nothing was stopped",
    504: "a node of the cluster does not answer; `outcome_unknown`: it may have stopped the model",
}

_MODEL_PARAMETER = {
    "name": "model",
    "in": "query",
    "required": False,
    "description": "Where the body names a model too, this one is taken.",
    "schema": {"type": "string", **MODEL_NAME_SCHEMA},
}

_PID_PARAMETER = {
    "name": "pid",
    "in": "query",
    "required": False,
    "description": "One of the model's backends; without it all are answered for together.",
    "schema": {"type": "integer", "minimum": 1},
}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }


_MODEL_FILTER = _query(
    "model", "Those of one model alone.", {"type": "string", **MODEL_NAME_SCHEMA}
)
_FRESH = _query(
    "fresh",
    "Whether to read all backends now; else what the last sweep found is given.",
    {"type": "boolean", "default": True},
)
_AFTER = _query(
    "after",
    "What is known already: `next` of the answer before; 0 for all that is kept.",
    {"type": "integer", "minimum": 0, "maximum": 2**53, "default": 0},
)
_WAIT = _query(
    "wait",
    "Seconds to wait for something to happen, 20 at most; few may wait at once.",
    {"type": "number", "minimum": 0, "default": 0},
)

_NODE = _query("node", "One node of the cluster alone.", {"type": "string"})
_PAGE = [
    _query("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": 10_000}),
    _query("after", "For the next page: `next` of the one before.", {"type": "string"}),
]

_MONITOR_HEADERS = {
    "X-Monitor-Source": "Where the reading came from: `grpc`, `hook` or `psutil`.",
    "X-Monitor-Memory-Source": "Where `memory.total` came from: `backend`, `pss` or `rss`.",
    "X-Monitor-Rpc-Error": "The gRPC code's name, where a backend gave no status.",
    "X-Monitor-Replicas": "How many backends the model has.",
}


def describe_api(token_required: bool, clustered: bool = False) -> bytes:
    """Describe the API: OpenAPI 3.1, as JSON.

    Args:
        token_required: whether clients must send a token.
        clustered: whether other nodes are answered for too.
    """
    body_types = (NodeMonitorBody, NodeShutdownBody) if clustered else (MonitorBody, ShutdownBody)
    schemas, components = _schemas(
        ClusterBackendsAnswer if clustered else BackendsAnswer,
        *(HistoryAnswer, EventsAnswer, VersionAnswer),
        StatusAnswer,
        SampleAnswer,
        StoppedAnswer,
        HealthAnswer,
        HooksAnswer,
        ErrorAnswer,
        *body_types,
    )
    backends, history, events, version, *schemas = schemas
    status, sample, stopped, health, hooks, error, monitor, shutdown = schemas
    text = {"type": "string"}
    open_to_all: dict[str, Any] = {"security": []}
    refusals = (401, 403) if token_required else (403,)
    unreachable = (504,) if clustered else ()
    node = [_NODE] if clustered else []

    def answers(*errors: int, good: Any, description: str, **more: Any) -> dict[str, Any]:
        return {
            "200": {"description": description, "content": _content(good), **more},
            **{str(code): _error(code, error) for code in sorted({400, *errors})},
        }

    def read(method: str, suffix: str) -> dict[str, Any]:
        return {
            "operationId": f"read_by_{method}{suffix}",
            "summary": "Read a model: its status, or what its process shows",
            "parameters": [_MODEL_PARAMETER, _PID_PARAMETER, *node],
            "requestBody": {"required": False, "content": _content(monitor)},
            "responses": answers(
                *(*refusals, 413, 500, *unreachable),
                good={"anyOf": [status, sample]},
                description="The backend's status, or its process where that failed",
                headers={
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in _MONITOR_HEADERS.items()
                },
            ),
        }

    def stop(suffix: str) -> dict[str, Any]:
        return {
            "operationId": f"shut_down{suffix}",
            "summary": "Stop a model, whole, for good",
            **({"parameters": node} if node else {}),
            "requestBody": {"required": True, "content": _content(shutdown)},
            "responses": answers(
                *(*refusals, 409, 413, 415, 500, 503, *unreachable),
                good=stopped,
                description="Its whole process tree is verified to be gone",
            ),
        }

    def simple(summary: str, good: Any, *errors: int, **more: Any) -> dict[str, Any]:
        name = summary.lower().replace(" ", "_")
        responses = answers(*errors, good=good, description=summary)
        return {"get": {"operationId": name, "summary": summary, "responses": responses, **more}}

    paths: dict[str, Any] = {}
    for prefix, suffix in (("", ""), ("/v1", "_v1")):
        paths[f"{prefix}/backend/monitor"] = {
            method: read(method, suffix) for method in ("get", "post")
        }
        paths[f"{prefix}/backend/shutdown"] = {"post": stop(suffix)}
        paths[f"{prefix}/backends"] = simple(
            f"Every backend{suffix and ', again'}",
            backends,
            *(*refusals, *unreachable),
            parameters=[_MODEL_FILTER, _FRESH, *node, *(_PAGE if clustered else ())],
        )
    if clustered:
        groups, more = _schemas(list[TargetGroup])
        components.update(more)
        paths["/cluster/targets"] = simple("All nodes, for Prometheus", groups[0], *refusals)
    paths["/events"] = simple("What happened", events, *refusals, parameters=[_AFTER, _WAIT])
    paths["/history"] = simple(
        "The last minutes of each backend", history, *refusals, parameters=[_MODEL_FILTER]
    )
    paths["/metrics"] = simple("Figures for Prometheus", text, *refusals, 501)
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {
        media_type: {"schema": text} for media_type in (TEXT, OPENMETRICS)
    }
    paths["/version"] = simple("Which program this is", version, *refusals)
    paths["/healthz"] = simple("Whether the monitor answers", health, 403, **open_to_all)
    paths["/readyz"] = simple("Whether the monitor watches", health, 403, **open_to_all)
    paths["/readyz"]["get"]["responses"]["503"] = {
        "description": "It is not started yet, or is closing",
        "content": _content(health),
    }
    paths["/hooks"] = simple("The plugins that are loaded", hooks, *refusals)
    for path, item in _page(error).items():
        paths[path] = {"get": {**item, **open_to_all}}
    paths["/openapi.json"] = simple("This description", {"type": "object"}, *refusals)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "monitor-plugin",
            "version": metadata.version("monitor-plugin"),
            "description": "Monitors the backends of a model-serving host, and stops them.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if token_required:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return msgspec.json.encode(document)


def _page(error: dict[str, Any]) -> dict[str, Any]:
    def answers(errors: Iterable[int], *types: str) -> dict[str, Any]:
        text = {"schema": {"type": "string"}}
        return {
            "200": {"description": "The file", "content": dict.fromkeys(types, text)},
            "304": {"description": "The client has it: `If-None-Match` named its `ETag`"},
            **{str(code): _error(code, error) for code in errors},
        }

    names = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(ASSETS)}}
    # A name that is no asset's is guarded as any other path is.
    return {
        "/": {
            "operationId": "page",
            "summary": "The page, for browsers",
            "responses": answers((400, 403), "text/html"),
        },
        "/assets/{name}": {
            "operationId": "asset",
            "summary": "What the page needs",
            "parameters": [names],
            "responses": answers((400, 401, 403, 404), *ASSET_TYPES),
        },
    }


def _schemas(*types: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    return list(schemas), components


def _error(code: int, error: dict[str, Any]) -> dict[str, Any]:
    return {"description": _ERRORS[code], "content": _content(error)}


def _content(schema: Any) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}
