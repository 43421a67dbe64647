"""Requests that wait for replies."""

from __future__ import annotations

import asyncio

from monitor_plugin.api.results import Response
from monitor_plugin.cluster.transport.messages import Caller, Reply, Request
from monitor_plugin.cluster.transport.pending_requests import Failure, PendingRequest

REQUEST = Request("backends", Caller("b", "ops", "read", "here"))


def test_pending_request_limits_the_bytes_of_its_replies() -> None:
    """A request keeps at most 64 MiB of replies; a reply beyond that becomes invalid."""
    pending = PendingRequest("subject", REQUEST)
    part = Reply("a", "1", answer=Response(200, b"x" * 2**20), last=False)

    async def first() -> Reply | Failure | None:
        return await pending.next(0.001)

    for _ in range(64):
        pending.put(part)
    assert asyncio.run(first()) is None
    pending.put(part)
    reply = asyncio.run(first())
    assert isinstance(reply, Reply)
    assert reply.kind == "invalid"
