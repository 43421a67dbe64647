"""Crowds of backends leave nothing behind: no channel, thread, descriptor or memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support import Spawner

SCRIPT = str(Path(__file__).with_name("many_backends.py"))
_MIB = 1024 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def ports(request: pytest.FixtureRequest, spawner: Spawner) -> str:
    """A line with the ports of one real gRPC server."""
    server = spawner.process(
        sys.executable, SCRIPT, "serve", str(request.param), stdin=subprocess.PIPE
    )
    assert server.stdout
    return server.stdout.readline()


def measure(spawner: Spawner, ports: str, command: str, number: int) -> Any:
    process = spawner.process(
        *(sys.executable, "-W", "error", SCRIPT, command, str(number)),
        stdin=subprocess.PIPE,
        # With several heaps, freed memory stays with the process and looks like a leak.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return json.loads(process.communicate(ports, timeout=300)[0])


def nothing_is_left(counts: list[dict[str, int]]) -> bool:
    before, _, second, third, fourth, closed = counts
    return (
        fourth["backends"] == 0
        and fourth["threads"] == before["threads"]
        and fourth["descriptors"] <= before["descriptors"]
        # The heap stops growing by the second round; a leak would show in both that follow.
        and min(third["rss"], fourth["rss"]) - second["rss"] < 8 * _MIB
        and closed["threads"] == 1
        and closed["descriptors"] < before["descriptors"]
    )


@pytest.mark.once
@pytest.mark.parametrize(("ports", "limit"), [(150, 192), (400, 8192)], indirect=["ports"])
def test_many_backends_at_once_leave_nothing_behind(
    limit: int, ports: str, spawner: Spawner
) -> None:
    """All are watched and read by gRPC, also with few descriptors, whose limit stays as it is."""
    result = measure(spawner, ports, "live", limit)
    assert result["sources"] == [{"grpc": len(ports.split())}] * 4
    assert result["limit"] == limit
    assert nothing_is_left(result["counts"]), result["counts"]


@pytest.mark.parametrize("ports", [20], indirect=True)
def test_thousands_of_registrations_leave_nothing_behind(ports: str, spawner: Spawner) -> None:
    """Processes start, are registered again at other addresses, and end."""
    result = measure(spawner, ports, "turn", 1000)  # in each of four rounds
    assert result["sources"] == [{"grpc": 200}] * 4
    assert nothing_is_left(result["counts"]), result["counts"]
