"""Crowds of backends leave nothing behind: no channel, thread, descriptor or memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support import Spawner

SCRIPT = str(Path(__file__).with_name("many_backends.py"))
_MIB = 1024 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def measure(spawner: Spawner, *command: str) -> Any:
    process = spawner.process(
        *(sys.executable, "-W", "error", SCRIPT, *command),
        # With several heaps, freed memory stays with the process and looks like a leak.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return json.loads(process.communicate(timeout=300)[0])


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
@pytest.mark.parametrize(("count", "limit"), [(60, 102), (100, 8192)])
def test_many_backends_at_once_leave_nothing_behind(
    count: int, limit: int, spawner: Spawner
) -> None:
    """All are watched and read by gRPC, also with few descriptors, whose limit stays as it is."""
    result = measure(spawner, "live", str(count), str(limit))
    assert result["sources"] == [{"grpc": count}] * 4
    assert result["limit"] == limit
    assert nothing_is_left(result["counts"]), result["counts"]


def test_thousands_of_registrations_leave_nothing_behind(spawner: Spawner) -> None:
    """Processes start, are registered again at other addresses, and end."""
    result = measure(spawner, "turn", "1000")  # in each of four rounds
    assert result["sources"] == [{"grpc": 200}] * 4
    assert nothing_is_left(result["counts"]), result["counts"]
