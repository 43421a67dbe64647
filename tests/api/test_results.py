"""The answers and errors of the contract, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest

from monitor_plugin import (
    Backend,
    BackendUnreadable,
    InvalidBackend,
    InvalidRequest,
    ListenError,
    Memory,
    ModelNotLoaded,
    MonitorError,
    PluginError,
    Reading,
    Sample,
    SettingsError,
    ShutdownFailed,
    ShutdownRefused,
    Status,
    TooManyShutdowns,
)
from monitor_plugin.api.results import (
    INTERNAL_ERROR,
    StoppedAnswer,
    encode,
    encode_error,
    error_kind,
    http_error_kind,
    reading_response,
)

BACKEND = Backend("m", 7, "127.0.0.1:1", 1.0)


def _reading(status: Status | None = None, sample: Sample | None = None, **fields: Any) -> Reading:
    known = {"source": "grpc", "rpc_error": None, "taken_at": 2.0, **fields}
    return Reading(BACKEND, status, sample, **known)


@pytest.mark.parametrize(
    ("reading", "body"),
    [
        (
            _reading(Status(2, Memory(1073741824, {"weights": 536870912, "kv_cache": 268435456}))),
            b'{"state":2,"memory":{"total":1073741824,'
            b'"breakdown":{"weights":536870912,"kv_cache":268435456}}}',
        ),
        (_reading(Status(0, Memory(5))), b'{"state":0,"memory":{"total":5,"breakdown":{}}}'),
        (_reading(Status(-1)), b'{"state":-1,"memory":null}'),
        (_reading(Status(42)), b'{"state":42,"memory":null}'),
        (
            _reading(Status(2, Memory(2**64 - 1))),
            b'{"state":2,"memory":{"total":18446744073709551615,"breakdown":{}}}',
        ),
        (
            _reading(sample=Sample(123, 456, 0.3, 12.5)),
            b'{"memory_info":{"rss":123,"vms":456},"memory_percent":0.3,"cpu_percent":12.5}',
        ),
        (
            _reading(sample=Sample(None, 456, None, 0.0)),
            b'{"memory_info":{"rss":null,"vms":456},"memory_percent":null,"cpu_percent":0.0}',
        ),
        (
            _reading(sample=Sample(None, None, None, None)),
            b'{"memory_info":{"rss":null,"vms":null},"memory_percent":null,"cpu_percent":null}',
        ),
        (
            _reading(),
            b'{"memory_info":{"rss":null,"vms":null},"memory_percent":null,"cpu_percent":null}',
        ),
    ],
)
def test_a_reading_is_answered_to_the_letter(reading: Reading, body: bytes) -> None:
    """A status, or else a sample, has exactly the documented fields; what is unknown is null."""
    assert reading_response(reading).body == body


def test_a_status_is_preferred_to_a_sample() -> None:
    """A reading that has a status is answered with it."""
    reading = _reading(Status(1), Sample(1, 2, 3.0, 4.0))
    assert reading_response(reading).body == b'{"state":1,"memory":null}'


@pytest.mark.parametrize(
    ("reading", "headers"),
    [
        (
            _reading(Status(2), memory_source="pss"),
            {"X-Monitor-Source": "grpc", "X-Monitor-Memory-Source": "pss"},
        ),
        (_reading(Status(2), source="hook"), {"X-Monitor-Source": "hook"}),
        (
            _reading(sample=Sample(1, 2, 3.0, 4.0), source="psutil", rpc_error="UNIMPLEMENTED"),
            {"X-Monitor-Source": "psutil", "X-Monitor-Rpc-Error": "UNIMPLEMENTED"},
        ),
    ],
)
def test_headers_say_where_a_reading_came_from(reading: Reading, headers: dict[str, str]) -> None:
    """Source, memory source and RPC error are headers, where there is something to say."""
    assert reading_response(reading).headers == {**headers, "X-Monitor-Replicas": "1"}


def test_a_shutdown_is_answered_to_the_letter() -> None:
    """The answer of a shutdown that is done is the documented one."""
    assert encode(StoppedAnswer()) == b'{"message":"model stopped"}'


@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (InvalidRequest("no"), 400, "invalid_request"),
        (ModelNotLoaded("m"), 500, "model_not_loaded"),
        (BackendUnreadable("m", 7, "no"), 500, "backend_unreadable"),
        (ShutdownRefused("m", "p", "no"), 409, "shutdown_refused"),
        (ShutdownFailed("m", "no"), 500, "shutdown_failed"),
        (TooManyShutdowns(8, 1), 503, "too_many_shutdowns"),
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
