"""One reading of a model out of several nodes' readings."""

from __future__ import annotations

from collections.abc import Sequence

from ...api.cluster_view import NODE_HEADER
from ...api.results import Response, reading_response
from ...domain.models import Memory
from ...readings.replicas import combine, unreadable_reading
from ..requests.client import PeerResult
from ..transport.messages import Reply, with_headers

UNREACHABLE_HEADER = "X-Monitor-Unreachable"
_MOST_HEADER_CHARACTERS = 2048


def merge_readings(results: Sequence[PeerResult]) -> Response:
    """Make one answer of several nodes'; who does not answer is left out, and named.

    Raises:
        ClusterError: no node gave a reading, and this one no answer at all.
    """
    results = sorted(results, key=lambda each: each.node)
    replies = [each.reply for each in results if each.reply]
    read = [(each, each.reading) for each in replies if each.reading is not None]
    if not read:
        return _without_reading(replies, [each.error for each in results if each.error])
    unreadable = [each for each in replies if _outcome(each) == "backend_unreadable"]
    headers = {}
    if unreachable := [each.node for each in results if each.error]:
        headers[UNREACHABLE_HEADER] = names_of(unreachable)
    if len(read) == 1 and not unreadable:
        return with_headers(answer_of(read[0][0]), headers)
    readings = [reading for _, reading in read]
    held: list[tuple[Memory | None, str | None]] = [
        (reading.status.memory, reading.memory_source)
        if reading.status
        else (reply.memory, reply.memory_source)
        for reply, reading in read
    ]
    for _ in unreadable:
        readings.append(unreadable_reading(readings[0].backend))
        held.append((None, None))
    nodes = [each.node for each in [*(reply for reply, _ in read), *unreadable]]
    headers[NODE_HEADER] = names_of(sorted(nodes))
    return with_headers(reading_response(combine(readings, held)), headers)


def names_of(nodes: Sequence[str]) -> str:
    """Name nodes in a header, which must not grow past what clients and proxies take."""
    text = ", ".join(nodes)
    if len(text) <= _MOST_HEADER_CHARACTERS:
        return text
    some = text[:_MOST_HEADER_CHARACTERS].rpartition(", ")[0]
    return f"{some}, and {len(nodes) - some.count(', ') - 1} more"


def _without_reading(replies: Sequence[Reply], errors: Sequence[Exception]) -> Response:
    for reply in replies:
        if _outcome(reply) != "model_not_loaded" or not errors:
            return answer_of(reply)
    raise errors[0]


def answer_of(reply: Reply) -> Response:
    """Give a reply's answer, and say whose it is."""
    assert reply.answer is not None
    return with_headers(reply.answer, {NODE_HEADER: reply.node})


def _outcome(reply: Reply) -> str | None:
    return reply.answer.outcome if reply.answer else None
