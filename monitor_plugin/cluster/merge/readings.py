"""Merges the readings of a model on several nodes into one."""

from __future__ import annotations

from collections.abc import Sequence

from ...api.cluster_view import NODE_HEADER
from ...api.results import Response, reading_response
from ...readings.replicas import (
    NO_MEMORY,
    SourcedMemory,
    combine,
    sourced_memory,
    unreadable_reading,
)
from ..requests.client import PeerResult
from ..transport.messages import Reply, with_headers

UNREACHABLE_HEADER = "X-Monitor-Unreachable"
_MAX_HEADER_CHARACTERS = 2048


def merge_readings(results: Sequence[PeerResult]) -> Response:
    """Merge several nodes' readings of a model. A header names the nodes that gave no answer.

    Raises:
        MonitorError: no node gave a reading, and a node that gave no answer may have the model.
    """
    results = sorted(results, key=lambda each: each.node)
    replies = [each.reply for each in results if each.reply]
    read = [(each, each.reading) for each in replies if each.reading is not None]
    if not read:
        return _without_reading(replies, [each.error for each in results if each.error])
    unreadable = [each for each in replies if _outcome(each) == "backend_unreadable"]
    headers = {}
    if unreachable := [each.node for each in results if each.error]:
        headers[UNREACHABLE_HEADER] = join_names(unreachable)
    if len(read) == 1 and not unreadable:
        return with_headers(answer_of(read[0][0]), headers)
    readings = [reading for _, reading in read]
    memories = [
        sourced_memory(reading)
        if reading.status
        else SourcedMemory(reply.memory, reply.memory_source, reply.memory_age_seconds)
        for reply, reading in read
    ]
    # An unreadable backend makes every sum unknown.
    readings += [unreadable_reading(readings[0].backend)] * len(unreadable)
    memories += [NO_MEMORY] * len(unreadable)
    nodes = [each.node for each in [*(reply for reply, _ in read), *unreadable]]
    headers[NODE_HEADER] = join_names(sorted(nodes))
    return with_headers(reading_response(combine(readings, memories)), headers)


def join_names(nodes: Sequence[str]) -> str:
    """Join nodes' names for a header, shortened to a length that clients and proxies accept."""
    text = ", ".join(nodes)
    if len(text) <= _MAX_HEADER_CHARACTERS:
        return text
    shortened = text[:_MAX_HEADER_CHARACTERS].rpartition(", ")[0]
    return f"{shortened}, and {len(nodes) - shortened.count(', ') - 1} more"


def answer_of(reply: Reply) -> Response:
    """Return the answer of a reply, with the header that names the node."""
    assert reply.answer is not None
    return with_headers(reply.answer, {NODE_HEADER: reply.node})


def _without_reading(replies: Sequence[Reply], errors: Sequence[Exception]) -> Response:
    """Return a node's error response, or raise the error of a node that did not answer.

    "Not loaded" is returned only if all nodes answered, because the others may have the model.
    """
    for reply in replies:
        if _outcome(reply) != "model_not_loaded" or not errors:
            return answer_of(reply)
    raise errors[0]


def _outcome(reply: Reply) -> str | None:
    return reply.answer.outcome if reply.answer else None
