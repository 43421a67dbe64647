"""Tests of the HTTP status, the type and the envelope of each error."""

from __future__ import annotations

import json

import pytest

from monitor_plugin import (
    BackendUnreadable,
    InvalidBackend,
    InvalidRequest,
    ListenError,
    ModelNotLoaded,
    MonitorError,
    PluginError,
    SettingsError,
    ShutdownFailed,
    ShutdownRefused,
    StartFailed,
    TooManyShutdowns,
    TooManyStarts,
)
from monitor_plugin.api.errors import (
    INTERNAL_ERROR,
    encode_error,
    error_kind,
    error_response,
    http_error_kind,
    load_failed_response,
)


@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (InvalidRequest("no"), 400, "invalid_request"),
        (ModelNotLoaded("m"), 500, "model_not_loaded"),
        (BackendUnreadable("m", 7, "no"), 500, "backend_unreadable"),
        (ShutdownRefused("m", "p", "no"), 409, "shutdown_refused"),
        (ShutdownFailed("m", "no"), 500, "shutdown_failed"),
        (StartFailed("m", "no"), 500, "start_failed"),
        (TooManyShutdowns(8, 1), 503, "too_many_shutdowns"),
        (TooManyStarts(4, 1), 503, "too_many_starts"),
        (InvalidBackend("no", model=1, pid=2, address=3), 500, "internal_error"),
        (SettingsError("listen", "no"), 500, "internal_error"),
        (ListenError("h:1", "no"), 500, "internal_error"),
        (PluginError(None, "no"), 500, "internal_error"),
        (MonitorError("no"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status_and_type(error: MonitorError, status: int, type: str) -> None:
    """Each of the package's errors has one status and one type; what no client causes is a 500."""
    assert error_kind(error) == (status, type)


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "payload_too_large"),
        (415, "unsupported_media_type"),
        (418, "http_error"),
    ],
)
def test_each_status_of_the_framework_has_its_type(status: int, type: str) -> None:
    """The framework's errors have a type by their status."""
    assert http_error_kind(status) == (status, type)


def test_the_envelope_repeats_the_status() -> None:
    """An error is an object with code, message and type, in this order."""
    assert encode_error(INTERNAL_ERROR, 'a "b" ü') == (
        '{"error":{"code":500,"message":"a \\"b\\" ü","type":"internal_error"}}'.encode()
    )


def test_only_the_response_of_a_failed_start_has_the_last_output() -> None:
    """Admins get it, at the end of both messages; lone surrogates are escaped."""
    error = StartFailed("m", "it ended", "loading\nno weights \udcff")
    answer = json.loads(load_failed_response(error).body)
    assert list(answer) == ["loaded", "message", "error"]
    assert answer["loaded"] == []
    text = "model 'm' could not be started: it ended"
    assert answer["message"] == f"{text}; its last output:\nloading\nno weights \\udcff"
    assert answer["error"] == {"code": 500, "message": answer["message"], "type": "start_failed"}
    assert json.loads(error_response(error).body)["error"]["message"] == text
    refused = load_failed_response(TooManyStarts(4, 5))
    assert (refused.status, refused.headers) == (503, {"Retry-After": "5"})
