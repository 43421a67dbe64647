"""Ollama's server: answers of its documentation, several models, and answers that lie."""

from __future__ import annotations

from typing import Any

import pytest

from monitor_plugin import Memory, State, Status
from monitor_plugin.status_protocols.ollama import Ollama

from ..recorded_servers import ModelServer, Reply, json_reply
from .support import read, replay

LOADED = Status(State.READY, Memory(5137025024, {"vram": 5137025024}))


def models(*found: Any) -> Reply:
    return json_reply({"models": found})


@pytest.mark.parametrize("name", ["mistral:latest", "mistral", "Mistral"])
@pytest.mark.parametrize(
    ("state", "status"), [("ready", LOADED), ("loading", Status(State.UNINITIALIZED))]
)
def test_documented_server(server: ModelServer, state: str, status: Status, name: str) -> None:
    replay(server, "ollama", state)
    assert read(server, Ollama, name) == status


def test_model_that_is_not_loaded_is_not_initialized(server: ModelServer) -> None:
    """While another one is."""
    replay(server, "ollama", "ready")
    server.replies["api-tags"] = models({"name": "mistral:latest"}, {"name": "llama3:8b"})
    assert read(server, Ollama, "llama3:8b") == Status(State.UNINITIALIZED)
    assert read(server, Ollama, "mistral:7b").state == State.READY


def test_backend_that_is_no_model_is_the_server_as_a_whole(server: ModelServer) -> None:
    """Its memory is that of the loaded models."""
    replay(server, "ollama", "ready")
    assert read(server, Ollama, "ollama") == LOADED
    loaded = [{"name": "a:1", "size": 5, "size_vram": 1}, {"name": "b:1", "size": 7}]
    server.replies["api-ps"] = models(*loaded)
    assert read(server, Ollama, "ollama") == Status(State.READY, Memory(12))
    server.replies["api-ps"] = models()
    assert read(server, Ollama, "ollama") == Status(State.READY)


def test_answer_500_is_an_error(server: ModelServer) -> None:
    server.replies = {"/api/ps": json_reply({"error": "x"}, 500)}
    assert read(server, Ollama) == Status(State.ERROR)


@pytest.mark.parametrize("lie", [None, True, "1", -1, 1.5, 10**30, [], {}])
def test_lies_are_unknown(server: ModelServer, lie: object) -> None:
    model = {"name": "tiny:latest", "size": lie, "size_vram": lie}
    server.replies = {"/api/ps": models(model)}
    assert read(server, Ollama) == Status(State.READY)
    server.replies = {"/api/ps": models({**model, "size": 5})}
    assert read(server, Ollama) == Status(State.READY, Memory(5))
    server.replies = {"/api/ps": models({"name": lie, "model": lie}, lie)}
    assert read(server, Ollama) == Status(State.UNINITIALIZED)
    server.replies = {"/api/ps": json_reply({"models": lie}), "/api/tags": json_reply(lie)}
    assert read(server, Ollama) == Status(State.READY)
