"""Which protocol a server speaks is seen from what it answers."""

from __future__ import annotations

import contextlib

import pytest

from monitor_plugin.domain import protocols as names
from monitor_plugin.status_protocols.catalog import GRPC_PROTOCOLS, HTTP_PROTOCOLS
from monitor_plugin.status_protocols.protocol import NoStatus

from ..recorded_servers import ModelServer, Reply, json_reply, recorded
from .support import replay

HTML = Reply(200, "text/html", b"<html>vllm: llama.cpp</html>")
RECORDED = [
    ("llama.cpp", "ready", "llama.cpp"),
    ("llama.cpp", "busy", "llama.cpp"),
    ("llama.cpp", "loading", "llama.cpp"),
    ("llama.cpp-router", "ready", "llama.cpp"),
    ("vllm", "ready", "vllm"),
    ("sglang", "ready", "sglang"),
    ("tgi", "ready", "tgi"),
    ("tgi", "failed", "tgi"),
    ("ollama", "ready", "ollama"),
    ("ollama", "loading", "ollama"),
    ("mlserver", "ready", "kserve-http"),
    ("mlserver", "loading", "kserve-http"),
]


def matching(server: ModelServer) -> list[str]:
    """Return the names of all protocols that match, each of which is tried."""
    found = []
    for each in HTTP_PROTOCOLS:
        with contextlib.suppress(NoStatus):  # the server has answered something else
            if each("tiny", "any").matches(server.get()):
                found.append(each.name)
    return found


def test_catalog_has_each_protocol_that_settings_know() -> None:
    """The order of detection is that of the names, and `localai` belongs to `rpc/`."""
    assert tuple(each.name for each in HTTP_PROTOCOLS) == names.HTTP_PROTOCOLS
    assert ("localai", *GRPC_PROTOCOLS) == names.GRPC_PROTOCOLS


@pytest.mark.parametrize(("folder", "state", "name"), RECORDED)
def test_recorded_server_matches_one_protocol(
    server: ModelServer, folder: str, state: str, name: str
) -> None:
    """So the order does not matter, except that many servers have OpenAI's API as well."""
    replay(server, folder, state)
    assert [each for each in matching(server) if each != "openai"] == [name]


@pytest.mark.parametrize("folder", ["llama.cpp", "vllm", "sglang", "tgi", "ollama"])
def test_server_behind_a_proxy_of_one_route_is_openai(server: ModelServer, folder: str) -> None:
    """A proxy that passes on `/v1/models`, and has a health route of its own, hides the server."""
    models = recorded(folder, "ready")["v1-models"]
    server.replies = {"/v1/models": models, "/health": json_reply({"status": "healthy"})}
    assert matching(server) == ["openai"]


@pytest.mark.parametrize("folder", ["llama.cpp", "vllm", "sglang", "tgi"])
def test_server_that_imitates_a_health_route_matches_nothing(
    server: ModelServer, folder: str
) -> None:
    server.replies = {"/health": recorded(folder, "ready")["health"]}
    assert matching(server) == []
    server.replies = {"/health": recorded("llama.cpp", "loading")["any-route"]}
    assert matching(server) == []


@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        HTML._replace(status=503),
        Reply(200),
        Reply(200, "text/plain", b"ok"),
        json_reply({}),
        json_reply([]),
        json_reply({"detail": "Unauthorized"}, 401),
        json_reply({"version": 1, "models": {}, "data": "text", "name": [], "model_id": 5}),
        Reply(302),
        Reply(500),
    ],
)
def test_server_that_answers_each_path_alike_matches_nothing(
    server: ModelServer, reply: Reply
) -> None:
    server.replies = {"any-route": reply}
    assert matching(server) == []


@pytest.mark.parametrize("folder", ["vllm", "sglang"])
def test_server_without_metrics_is_detected(server: ModelServer, folder: str) -> None:
    """vLLM with `--disable-log-stats`, and SGLang without `--enable-metrics`."""
    replay(server, folder, "ready")
    del server.replies["metrics"]
    assert [each for each in matching(server) if each != "openai"] == [folder]


def test_open_inference_server_with_its_health_route_alone_is_detected(
    server: ModelServer,
) -> None:
    server.replies = {"/v2/health/ready": Reply(503)}
    assert matching(server) == ["kserve-http"]
