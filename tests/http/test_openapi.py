"""The description of the API: complete, and true of what is served."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Backend, Monitor, hookimpl
from monitor_plugin.http.openapi import describe_api

from ..support import Client, Spawner

# By the contract, a valid request for a model that is not loaded is a 500. No schema can express
# that the model is in the query or else in the body.
SKIPPED_CHECKS = "not_a_server_error,positive_data_acceptance,negative_data_rejection"


class Refuses:
    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> str:
        return "it is needed"


def test_every_route_is_described(monitor: Monitor) -> None:
    """Each route of the application stands there with its methods, and no other."""
    described = json.loads(describe_api(token_required=False))["paths"]
    served: dict[str, set[str]] = {}

    def walk(nodes: Any) -> None:
        for node in nodes:
            if node.resource is not None:
                # Falcon adds its own functions for the other methods.
                served[node.uri_template] = {
                    method
                    for method in ("get", "post")
                    if node.method_map[method.upper()].__name__.startswith("on_")
                }
            walk(node.children)

    walk(monitor.app._router._roots)
    assert {path: set(item) for path, item in described.items()} == served


def test_the_token_is_described_if_it_is_required(make_monitor: Callable[..., Monitor]) -> None:
    """The document says that a bearer token is needed, but for what is open."""
    client = Client(make_monitor(token="l0ne").url)
    answer = client.request("GET", "/openapi.json", None, {"Authorization": "Bearer l0ne"})
    assert answer.headers["Content-Type"] == "application/json"
    document = answer.json
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in document["paths"]["/backend/shutdown"]["post"]["responses"]
    open_document = json.loads(describe_api(token_required=False))
    assert "security" not in open_document
    assert "401" not in open_document["paths"]["/backend/shutdown"]["post"]["responses"]


def test_every_reference_names_a_schema() -> None:
    """Each `$ref` names a schema of the document."""
    text = describe_api(token_required=True).decode()
    schemas = json.loads(text)["components"]["schemas"]
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names == set(schemas)
    assert {"StatusAnswer", "SampleAnswer", "ErrorAnswer", "ShutdownBody"} <= names


@pytest.mark.slow
@pytest.mark.once
def test_schemathesis_finds_nothing_undescribed(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Schemathesis finds no answer that is not described, and the monitor logs no failure."""
    monitor = make_monitor(plugins=[Refuses()], token="s3cret", start_timeout_seconds=0.2)
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="0", pid=process.pid, address="127.0.0.1:1")
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run"),
        *(f"{monitor.url}/openapi.json", "--checks", "all", "--exclude-checks", SKIPPED_CHECKS),
        *("--continue-on-failure", "--max-time", "6", "--seed", "1"),
        *("--header", "Authorization: Bearer s3cret"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No API operations" not in done.stdout
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    assert monitor.backends()
