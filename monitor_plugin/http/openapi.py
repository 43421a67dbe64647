"""Makes `/openapi.json`: this module lists the paths; the schemas are the structs of `api/`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..api import errors, requests, results, schemas
from ..domain.logs import MAX_LOG_BYTES, STREAMS
from ..domain.version import package_version
from .resources.metrics import OPENMETRICS, TEXT
from .resources.page import ASSET_TYPES, ASSETS

_REF_TEMPLATE = "#/components/schemas/{name}"
_TEXT_SCHEMA = {"type": "string"}

_ERRORS = {
    400: "the model's name is missing or invalid, or the body is not JSON, or the query not UTF-8",
    401: "no valid token was sent",
    403: "the token's role is too low, or the host or the page's site is not allowed",
    404: "there is nothing at this path, no such end is stored, or there is no log to read",
    409: "a hook refused the shutdown; nothing was stopped",
    413: "the body is larger than 64 KiB",
    415: "the body's content type is not application/json",
    500: "the model is not loaded, cannot be read, or could not be stopped or started",
    501: "the extra [metrics] is not installed",
    503: "too many shutdowns or starts are under way; nothing was done",
    504: "a node of the cluster does not answer; `outcome_unknown`: it may have done its part",
}


def _query_parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    place = {"name": name, "in": "query", "required": False}
    return {**place, "description": description, "schema": schema}


_MODEL_NAME = {"type": "string", **requests.MODEL_NAME_SCHEMA}
_MODEL = _query_parameter("model", "The model; it overrides the one in the body.", _MODEL_NAME)
_MODEL_FILTER = _query_parameter("model", "Only the backends of this model.", _MODEL_NAME)
_MODEL_PEAKS = _query_parameter("model", "Only this model.", _MODEL_NAME)
_MODEL_OF_MEMBERS = {**_query_parameter("model", "The model.", _MODEL_NAME), "required": True}
_PID_OF_MEMBERS = _query_parameter(
    "pid", "The PID of one of the model's backends.", {"type": "integer", "minimum": 1}
)
_PID_OF_LOG = _query_parameter(
    "pid",
    "The PID of one of the model's backends, which may have ended; without it, the newest one.",
    {"type": "integer", "minimum": 1},
)
_MODEL_TO_FIT = {
    **_query_parameter("model", "The model; it need not be loaded.", _MODEL_NAME),
    "required": True,
}
_PID = _query_parameter(
    "pid",
    "The PID of one of the model's backends; without it, all are read together.",
    {"type": "integer", "minimum": 1},
)
_FRESH = _query_parameter(
    "fresh",
    "Read all backends now; with `false`, the answer is what the last sweep found.",
    {"type": "boolean", "default": True},
)
_AFTER_EVENT = _query_parameter(
    "after",
    "`next` of the previous answer; 0 for all events that are kept.",
    {"type": "integer", "minimum": 0, "maximum": 2**53, "default": 0},
)
_WAIT = _query_parameter(
    "wait",
    "Seconds to wait for an event, 20 at most; only a few clients may wait at once.",
    {"type": "number", "minimum": 0, "default": 0},
)
_VERBOSE = _query_parameter(
    "verbose",
    "Also answer what the monitor can see and do here; this needs a token where others do.",
    {"type": "boolean", "default": False},
)
_STREAM = _query_parameter("stream", "The stream.", {"enum": list(STREAMS), "default": "stderr"})
_BYTES = _query_parameter(
    "bytes",
    "Maximum number of bytes.",
    {"type": "integer", "minimum": 1, "maximum": MAX_LOG_BYTES, "default": 65536},
)
_AFTER_OFFSET = _query_parameter(
    "after",
    "`next` of the previous answer; without it, the answer is the end of the log.",
    {"type": "integer", "minimum": 0, "maximum": 2**53},
)
_END_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "`id` of an item of `ended` in the list of backends.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 2**53},
}
_NODE = _query_parameter("node", "Only this node of the cluster.", {"type": "string"})
_LIMIT = _query_parameter(
    "limit", "Maximum number of backends.", {"type": "integer", "minimum": 1, "maximum": 10_000}
)
_AFTER_BACKEND = _query_parameter(
    "after", "For the next page: `next` of the previous answer.", {"type": "string"}
)
_ASSET = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(ASSETS)}}

_NOT_MODIFIED = {"description": "The client has this version: `If-None-Match` named its `ETag`"}
_MONITOR_HEADERS = {
    name: {"description": description, "schema": _TEXT_SCHEMA}
    for name, description in {
        "X-Monitor-Source": "Where the reading came from: `grpc`, `hook` or `psutil`.",
        "X-Monitor-Memory-Source": "Where `memory.total` came from: `backend`, `pss` or `rss`.",
        "X-Monitor-Memory-Age": "How many seconds ago that was read, where it is `pss`.",
        "X-Monitor-Rpc-Error": "The gRPC code's name, where a backend gave no status.",
        "X-Monitor-Address-Owner": "The process that serves the address and is no member.",
        "X-Monitor-Replicas": "How many backends the model has.",
    }.items()
}
_SHUTDOWN_HEADERS = {
    results.VERIFIED_HEADER: {
        "description": "`partly` where the monitor cannot see all processes; otherwise absent.",
        "schema": _TEXT_SCHEMA,
    },
    results.FREED_HEADER: {
        "description": "What came back: `memory=BYTES, gpu=BYTES, gpu_left=BYTES, seconds=S`.",
        "schema": _TEXT_SCHEMA,
    },
}


def describe_api(token_required: bool, clustered: bool = False) -> bytes:
    """Describe the API: OpenAPI 3.1, as JSON.

    Args:
        token_required: whether clients must send a token.
        clustered: whether the monitor also answers for other nodes.
    """
    structs = [schemas.HistoryAnswer, schemas.EventsAnswer, schemas.VersionAnswer]
    structs += [schemas.PeaksAnswer, schemas.FitsAnswer, schemas.MembersAnswer]
    structs += [schemas.LogAnswer, schemas.PostMortemItem]
    structs += [results.StatusAnswer, results.SampleAnswer, results.StoppedAnswer]
    structs += [results.LoadedAnswer, errors.LoadFailedAnswer]
    structs += [results.HealthAnswer, results.ReadyAnswer, results.HooksAnswer, errors.ErrorAnswer]
    if clustered:
        structs += [schemas.ClusterBackendsAnswer, schemas.ClusterGpusAnswer, schemas.TargetGroup]
        structs += [requests.NodeMonitorBody, requests.NodeShutdownBody]
        structs += [requests.NodeLoadBody, requests.NodeRestartBody]
    else:
        structs += [schemas.BackendsAnswer, schemas.GpusAnswer]
        structs += [requests.MonitorBody, requests.ShutdownBody]
        structs += [requests.LoadBody, requests.RestartBody]
    _, components = msgspec.json.schema_components(structs, ref_template=_REF_TEMPLATE)
    for name, component in components.items():
        if "properties" in component and not hasattr(requests, name):
            _require_all_properties(component)
    components[results.ReadyAnswer.__name__]["required"] = ["status"]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "monitor-plugin",
            "version": package_version(),
            "description": "Monitors the backends of a model-serving host, and stops them.",
        },
        "paths": _paths((401, 403) if token_required else (403,), clustered),
        "components": {"schemas": components},
    }
    if token_required:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return msgspec.json.encode(document)


def _require_all_properties(component: dict[str, Any]) -> None:
    """Mark every property of an answer as required, because this monitor sends every field.

    The default values of the structs are for clients that decode the answer of an older monitor.
    """
    component["required"] = list(component["properties"])
    for schema in component["properties"].values():
        schema.pop("default", None)


def _paths(refused: tuple[int, ...], clustered: bool) -> dict[str, Any]:
    """Describe every path.

    Args:
        refused: the status codes with which the guard refuses a request.
        clustered: whether the monitor also answers for other nodes.
    """
    unreachable = (504,) if clustered else ()
    node = [_NODE] if clustered else []
    paths: dict[str, Any] = {}
    for prefix, suffix in (("", ""), ("/v1", "_v1")):
        for method in ("get", "post"):
            body = _json(requests.NodeMonitorBody if clustered else requests.MonitorBody)
            paths.setdefault(f"{prefix}/backend/monitor", {})[method] = _operation(
                "Read a model: its status, or else a sample of its process",
                _json({"anyOf": [_ref(results.StatusAnswer), _ref(results.SampleAnswer)]}),
                (*refused, 413, 500, *unreachable),
                [_MODEL, _PID, *node],
                operation_id=f"read_by_{method}{suffix}",
                description="The backend's status, or a sample of its process where that failed",
                headers=_MONITOR_HEADERS,
                requestBody={"required": False, "content": body},
            )
        body = _json(requests.NodeShutdownBody if clustered else requests.ShutdownBody)
        stop = _operation(
            "Stop a model for good, with all its processes",
            _json(results.StoppedAnswer),
            (*refused, 409, 413, 415, 500, 503, *unreachable),
            node,
            operation_id=f"shut_down{suffix}",
            description="The model's processes have ended, and nothing serves its addresses",
            headers=_SHUTDOWN_HEADERS,
            requestBody={"required": True, "content": body},
        )
        paths[f"{prefix}/backend/shutdown"] = {"post": stop}
        load = requests.NodeLoadBody if clustered else requests.LoadBody
        restart = requests.NodeRestartBody if clustered else requests.RestartBody
        start_codes = (*refused, 413, 415, 500, 503, *unreachable)
        paths[f"{prefix}/backend/load"] = _start(
            f"load{suffix}", "Start a model, and wait until it is ready", load, start_codes, node
        )
        paths[f"{prefix}/backend/restart"] = _start(
            f"restart{suffix}",
            "Stop a model, or one of its backends, and start it again",
            restart,
            (409, *start_codes),
            node,
        )
        paths[f"{prefix}/backends"] = _get(
            "Every backend, again" if prefix else "Every backend",
            schemas.ClusterBackendsAnswer if clustered else schemas.BackendsAnswer,
            (*refused, *unreachable),
            [_MODEL_FILTER, _FRESH, *((_NODE, _LIMIT, _AFTER_BACKEND) if clustered else ())],
        )
    paths["/backend/members"] = _get(
        "The processes of each backend of a model",
        schemas.MembersAnswer,
        (*refused, 500),
        [_MODEL_OF_MEMBERS, _PID_OF_MEMBERS],
    )
    paths["/backend/log"] = _get(
        "What a model's process has written last",
        schemas.LogAnswer,
        (*refused, 404, 500),
        [_MODEL_OF_MEMBERS, _PID_OF_LOG, _STREAM, _BYTES, _AFTER_OFFSET],
        operation_id="read_log",
    )
    paths["/ended/{id}"] = _get(
        "All that is known of the end of a backend",
        schemas.PostMortemItem,
        (*refused, 404),
        [_END_ID],
        operation_id="read_postmortem",
    )
    paths["/gpus"] = _get(
        "Every GPU, and which processes use its memory",
        schemas.ClusterGpusAnswer if clustered else schemas.GpusAnswer,
        (*refused, *unreachable),
        node,
        operation_id="list_gpus",
    )
    if clustered:
        nodes = {"type": "array", "items": _ref(schemas.TargetGroup)}
        paths["/cluster/targets"] = _get("All nodes, for Prometheus", nodes, refused)
    paths["/events"] = _get("What happened", schemas.EventsAnswer, refused, [_AFTER_EVENT, _WAIT])
    paths["/history"] = _get(
        "The last minutes of each backend", schemas.HistoryAnswer, refused, [_MODEL_FILTER]
    )
    paths["/models/peaks"] = _get(
        "The most that each model ever held", schemas.PeaksAnswer, refused, [_MODEL_PEAKS]
    )
    paths["/fits"] = _get(
        "Whether one more backend of a model fits", schemas.FitsAnswer, refused, [_MODEL_TO_FIT]
    )
    metrics = _text(TEXT, OPENMETRICS)
    paths["/metrics"] = {"get": _operation("Figures for Prometheus", metrics, (*refused, 501))}
    paths["/version"] = _get("Which program this is", schemas.VersionAnswer, refused)
    paths["/hooks"] = _get("The plugins that are loaded", results.HooksAnswer, refused)
    paths["/openapi.json"] = _get("This description", {"type": "object"}, refused)
    for path, summary, answer in (
        ("/healthz", "Whether the monitor answers", results.HealthAnswer),
        ("/readyz", "Whether the monitor watches", results.ReadyAnswer),
    ):
        paths[path] = _get(summary, answer, (403,), security=[])
    ready = paths["/readyz"]["get"]
    ready["parameters"] = [_VERBOSE]
    if 401 in refused:
        ready["security"] = [{}, {"token": []}]
        ready["responses"]["401"] = paths["/version"]["get"]["responses"]["401"]
    ready["responses"]["503"] = {
        "description": "It is not started yet, or is closing",
        "content": _json(results.ReadyAnswer),
    }
    # For a name that is no asset, the guard requires a token, as for any other path.
    for path, name, summary, media_types, error_codes, parameters in (
        ("/", "page", "The page, for browsers", ["text/html"], (403,), ()),
        ("/assets/{name}", "asset", "An asset of the page", ASSET_TYPES, (401, 403, 404), [_ASSET]),
    ):
        item = _operation(
            summary, _text(*media_types), error_codes, parameters, name, "The file", security=[]
        )
        item["responses"]["304"] = _NOT_MODIFIED
        paths[path] = {"get": item}
    return paths


def _start(
    operation_id: str,
    summary: str,
    body: type[Any],
    error_codes: Iterable[int],
    parameters: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Describe the path of a start or a restart. Its failures have more fields than errors have."""
    operation = _operation(
        summary,
        _json(results.LoadedAnswer),
        error_codes,
        parameters,
        operation_id,
        "A backend of the model is ready",
        requestBody={"required": True, "content": _json(body)},
    )
    for status in ("409", "500", "503", "504"):
        if status in operation["responses"]:
            operation["responses"][status]["content"] = _json(errors.LoadFailedAnswer)
    return {"post": operation}


def _get(summary: str, answer: type[Any] | dict[str, Any], *rest: Any, **more: Any) -> Any:
    return {"get": _operation(summary, _json(answer), *rest, **more)}


def _operation(
    summary: str,
    content: dict[str, Any],
    error_codes: Iterable[int],
    parameters: Sequence[dict[str, Any]] = (),
    operation_id: str | None = None,
    description: str | None = None,
    headers: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Describe a method of a path.

    By default the ID is made from the summary, and the summary also describes status 200.
    `content` and `headers` belong to status 200; `error_codes` are those of errors beside 400.
    """
    success = {"description": description or summary, "content": content}
    error = _json(errors.ErrorAnswer)
    return {
        "operationId": operation_id or summary.lower().replace(" ", "_"),
        "summary": summary,
        **({"parameters": parameters} if parameters else {}),
        "responses": {
            "200": {**success, "headers": headers} if headers else success,
            **{
                str(status): {"description": _ERRORS[status], "content": error}
                for status in sorted({400, *error_codes})
            },
        },
        **more,
    }


def _ref(struct: type[Any]) -> dict[str, Any]:
    return {"$ref": _REF_TEMPLATE.format(name=struct.__name__)}


def _json(schema: type[Any] | dict[str, Any]) -> dict[str, Any]:
    """Describe a JSON body by its schema, or by the struct that it is decoded to."""
    return {"application/json": {"schema": schema if isinstance(schema, dict) else _ref(schema)}}


def _text(*media_types: str) -> dict[str, Any]:
    return {media_type: {"schema": _TEXT_SCHEMA} for media_type in media_types}
