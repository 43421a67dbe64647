"""Whatever a server answers, a reading gives a valid status or says why there is none."""

from __future__ import annotations

import contextlib
import json
import math
import random
from typing import Any

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.catalog import HTTP_PROTOCOLS
from monitor_plugin.status_protocols.protocol import Answer, HttpProtocol, NoStatus

from ..recorded_servers import NOT_FOUND, Reply, find_reply, recorded

FOLDERS = {
    "llama.cpp": ("llama.cpp", "llama.cpp-router"),
    "kserve-http": ("mlserver",),
    "openai": ("vllm",),
}
LIES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, -1e300, 10**30, "", "text", "-1", [], {}, [[]], [None], [{}],
    {"models": 1}, ["tiny"],
)  # fmt: skip
WORDS = ("NaN", "-Inf", "+Inf", "-1", "1e400", "0.5", "1e18", "x", "", "{", '{a="', "\x00")
BODIES = (b"", b"\xff\xfe", b"null", b"[" * 100_000, b'{"data":', b"<html>", b"1" * 5000)


def is_valid(status: Status) -> bool:
    """Whether all figures are in their ranges, and of their types."""
    counts = [status.requests_running, status.requests_waiting]
    rates = [status.tokens_per_second, status.kv_cache_percent]
    sizes = [status.memory.total, *status.memory.breakdown.values()] if status.memory else []
    return (
        isinstance(status.state, State)
        and all(type(each) is int and 0 <= each < 2**64 for each in sizes)
        and all(each is None or (type(each) is int and 0 <= each <= 2**63) for each in counts)
        and all(each is None or (math.isfinite(each) and each >= 0) for each in rates)
        and (status.kv_cache_percent or 0) <= 100
    )


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON with one of its values, chosen by chance, replaced or left out."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.2:
        return chance.choice(LIES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(keys)
    copy = value.copy()
    if chance.random() < 0.2:
        del copy[key]
    else:
        copy[key] = changed(value[key], chance)
    return copy


def lying(reply: Reply, chance: random.Random) -> Reply:
    """Return an answer of which one part is wrong."""
    kind = chance.randrange(10)
    if kind == 0:
        return reply._replace(status=chance.choice([200, 302, 401, 404, 500, 501, 503]))
    if kind == 1:
        return reply._replace(content_type=chance.choice(["", "text/html", "application/json"]))
    if kind == 2:
        return reply._replace(body=chance.choice(BODIES))
    if reply.body.startswith((b"{", b"[")):
        return reply._replace(body=json.dumps(changed(json.loads(reply.body), chance)).encode())
    lines = reply.body.decode().split("\n")
    for index, line in enumerate(lines):
        if not line.startswith("#") and chance.random() < 0.5:
            lines[index] = line.rpartition(" ")[0] + " " + chance.choice(WORDS)
    return reply._replace(body="\n".join(lines).encode())


@pytest.mark.once
@pytest.mark.parametrize("protocol", HTTP_PROTOCOLS, ids=lambda each: each.name)
def test_reading_of_a_lying_server_is_valid(protocol: type[HttpProtocol]) -> None:
    """Each protocol reads a thousand servers, of which each lies in one or more of its answers."""
    chance = random.Random(protocol.name)
    outcomes: set[object] = set()
    for number in range(1000):
        folder = chance.choice(FOLDERS.get(protocol.name, (protocol.name,)))
        replies = recorded(folder, "ready" if number % 2 else "busy")
        liars = [name for name in replies if chance.random() < 0.6]
        replies |= {name: lying(replies[name], chance) for name in liars}

        def get(path: str, replies: dict[str, Reply] = replies) -> Answer:
            reply = find_reply(replies, path) or NOT_FOUND
            return Answer(path, reply.status, reply.content_type.partition(";")[0], reply.body)

        server = protocol(chance.choice(["tiny", "mistral", "other"]), "any")
        try:
            for _ in range(2):
                status = server.read(get)
                assert is_valid(status)
                outcomes.add(status.state)
        except NoStatus as error:
            outcomes.add(error.rpc_error)
        with contextlib.suppress(NoStatus):
            assert server.matches(get) in (True, False)
    assert len(outcomes) > 4
