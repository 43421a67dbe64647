"""Tests of the answers of the HTTP contract, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from monitor_plugin import (
    Backend,
    Memory,
    Reading,
    Sample,
    Status,
)
from monitor_plugin.api.results import (
    StoppedAnswer,
    encode,
    format_freed,
    parse_freed,
    reading_response,
)
from monitor_plugin.domain.models import Freed

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
            _reading(Status(2), memory_source="pss", memory_age_seconds=61.25),
            {
                "X-Monitor-Source": "grpc",
                "X-Monitor-Memory-Source": "pss",
                "X-Monitor-Memory-Age": "61.250",
            },
        ),
        (
            _reading(Status(2), memory_source="rss"),
            {"X-Monitor-Source": "grpc", "X-Monitor-Memory-Source": "rss"},
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
    ("freed", "header"),
    [
        (
            Freed(memory=268435456, gpu=1073741824, gpu_left=0, seconds=0.52),
            "memory=268435456, gpu=1073741824, seconds=0.52",
        ),
        (
            Freed(memory=0, gpu=0, gpu_left=5, seconds=5.0),
            "memory=0, gpu=0, gpu_left=5, seconds=5.0",
        ),
        (Freed(memory=1), "memory=1, seconds=0.0"),
        (Freed(seconds=0.0004), "seconds=0.0"),
    ],
)
def test_header_of_freed_memory_has_the_known_figures(freed: Freed, header: str) -> None:
    """It can be parsed again, to add it up in a cluster and to print it."""
    assert format_freed(freed) == header
    assert parse_freed(header) == structs.replace(freed, seconds=round(freed.seconds, 3))


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "memory=1", "memory=-1, seconds=0.0", "memory=, seconds=1"),
        *("memory=\u0661, seconds=1", "memory=1, seconds=x", "memory=1, seconds=nan"),
        *("memory=1, seconds=-1", "memory=1, seconds=inf", f"memory={10**15}, seconds=1"),
    ],
)
def test_malformed_header_of_freed_memory_is_ignored(header: str | None) -> None:
    """A peer or a proxy may send anything."""
    assert parse_freed(header) is None


def test_header_of_a_later_version_is_parsed() -> None:
    """It may have more figures, and other spaces."""
    assert parse_freed("memory=1,  disk=7,seconds=1") == Freed(memory=1, seconds=1.0)
