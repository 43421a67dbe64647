"""Waits for what comes of a question: who should answer, who says that it will, and others."""

from __future__ import annotations

import time
from collections.abc import Set
from typing import NamedTuple

from .messages import Reply
from .pending_requests import Failure, PendingRequest

# For those that are not known yet, once the known ones have answered.
_OTHERS_SECONDS = 0.05


class Replies(NamedTuple):
    """What came of a question.

    Attributes:
        replies: one of each run of a node.
        why: what ended the wait for more.
        at_work: the nodes that said that they are at it, and did not answer.
    """

    replies: list[Reply]
    why: Failure | None
    at_work: list[str]


async def collect_replies(
    talk: PendingRequest, expected: Set[str], first_seconds: float, seconds: float, *, others: bool
) -> Replies:
    """Wait for answers.

    Args:
        talk: the question.
        expected: the nodes that should answer.
        first_seconds: how long to wait for the first word of each: that it is at work, say.
        seconds: how long to wait for answers.
        others: whether nodes that are not expected are heard too.
    """
    began = last = time.monotonic()
    missing = set(expected)
    at_work: set[tuple[str, str]] = set()
    replies: dict[tuple[str, str], Reply] = {}

    def heard(why: Failure | None) -> Replies:
        return Replies([*replies.values()], why, sorted({node for node, _ in at_work}))

    while True:
        if at_work:
            until = began + seconds
        elif missing or not replies:
            until = began + first_seconds
        elif others:
            until = min(last + _OTHERS_SECONDS, began + seconds)
        else:
            return heard(None)
        # What has come is taken, however late this is, but not for ever from who does not stop.
        word = await talk.next(until - time.monotonic())
        if not isinstance(word, Reply):
            return heard(word)
        last = time.monotonic()
        if last > began + 2 * seconds:
            return heard(None)
        if not others and word.node not in expected:
            continue
        who = (word.node, word.run)
        missing.discard(word.node)
        if word.kind == "working":
            at_work.add(who)
        else:
            at_work.discard(who)
            replies[who] = word
